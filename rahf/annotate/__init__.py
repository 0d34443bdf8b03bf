"""The web application that makes feedback: people mark places, words and scores of pictures (`rahf annotate`).

`tables` and `database` hold what is stored, `importing` the pictures and prompts, `people` who may come in,
`assignments` who sees which picture, `saving` what they answered. `answers` checks an answer, `gold` compares it with
the right one, `quality` describes people and disputed pictures, `agreement` measures how far people agree. `exporting`
writes the answers, `label_studio` and `coco` in the forms of others, and `import_answers` reads them. `application` is
the HTTP interface, `guards` its limits and headers, `views` what a person is told, `serve` runs it; `page/` is what the
browser gets. docs/annotate.md describes all of it.
"""

import importlib.util

from rahf.core.errors import ExtraMissing

_ABSENT = [name for name in ("fastapi", "sqlalchemy", "uvicorn") if importlib.util.find_spec(name) is None]
if _ABSENT:
    raise ExtraMissing(f"`rahf annotate` needs {', '.join(_ABSENT)}, not installed here: pip install rahf[annotate]")
