"""Report: one page a person looks at, drawn from a record and from nothing else.

Neither torch nor a plotting library is loaded by importing this; each function loads what it needs when it is
called, and names the extra to install when it is not there.
"""

from crossent.report.html import write as write
from crossent.report.terminal import show as show
from crossent.report.text import headline as headline

__all__ = ["headline", "show", "write"]
