"""What a notebook brings as HTML, as a page may show it: no scripts, and no request to anywhere.

Whoever wrote the notebook may be a stranger. Its pictures are embedded, if they lie in its own
folder.
"""

import base64
import mimetypes
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rolloutlib.extras import needs
from rolloutlib.pages.figures import as_flac

with needs("notebooks"):
    from bleach.html5lib_shim import Filter
    from bleach.sanitizer import Cleaner

LARGEST_PICTURE = 32 * 2**20  # bytes of a file that is embedded
MOST_TAGS = 20_000  # of one piece: cleaning them takes some seconds
PICTURES = {"image/png", "image/jpeg", "image/gif", "image/svg+xml", "image/webp"}
TEXT = """a abbr b bdi bdo blockquote br caption center cite code col colgroup dd del details dfn
    div dl dt em figcaption figure font h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark meter ol p pre
    progress q s samp section small span strike strong style sub summary sup table tbody td tfoot
    th thead time tr tt u ul var wbr audio source video"""
FORMULAS = """math maction menclose merror mfrac mi mmultiscripts mn mo mover mpadded mphantom
    mprescripts mroot mrow ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder
    munderover none semantics"""
DRAWINGS = """svg circle clipPath defs desc ellipse g line linearGradient marker mask path pattern
    polygon polyline radialGradient rect stop symbol text title tspan use"""
SCRIPT = re.compile(r"<script\b.*?</script\s*>", re.IGNORECASE | re.DOTALL)
CODE = {"script", "noscript"}  # left out with all that is in them


def embedded(address: str, folder: Path, attachments: Mapping[str, Mapping[str, str]]) -> str:
    """A picture as a `data:` address; the picture is an attachment, or a file in `folder`.

    Raises ValueError for an address elsewhere, a file outside the folder, one that is missing or
    above LARGEST_PICTURE, and for what is not a picture by its name.
    """
    parts = urlsplit(address)
    if parts.scheme == "data":
        return address
    if parts.scheme == "attachment":
        bundle = attachments.get(unquote(parts.path), {})
        kind = next(iter(PICTURES & bundle.keys()), "")
        content = str(bundle.get(kind, ""))
    else:
        path = (folder / unquote(parts.path)).resolve()
        kind = mimetypes.guess_type(path.name)[0]
        within = not (parts.scheme or parts.netloc) and folder.resolve() in path.parents
        if not within or not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
            raise ValueError(f"expected a picture in the notebook's folder, got {address}")
        content = base64.b64encode(path.read_bytes()).decode() if kind in PICTURES else ""
    if not content:
        raise ValueError(f"expected a picture, got {address}")
    return f"data:{kind};base64,{content}"


def safe_html(source: str, picture: Callable[[str], str]) -> str:
    """HTML without scripts and without anything that a browser would load by itself.

    picture: gives the `data:` address of a picture's address, or raises ValueError; the page then
    says which picture it leaves out.

    Raises ValueError for more than MOST_TAGS tags.
    """
    source = SCRIPT.sub("", source)  # a whole library, often; the cleaner is slow
    source = source.replace("<th></th>", "<td></td>")  # a header must say what it heads
    source = source.replace("<table", '<table tabindex="0"')  # or keys could not scroll it
    if source.count("<") > MOST_TAGS:
        raise ValueError(f"expected HTML of at most {MOST_TAGS} tags, got {source.count('<')}")
    return Cleaner(
        tags={*TEXT.split(), *FORMULAS.split(), *DRAWINGS.split(), *CODE},
        attributes=_is_kept,
        protocols={"http", "https", "mailto", "data", "attachment"},
        strip=True,
        css_sanitizer=_AnyStyle(),
        filters=[_pictures_by(picture)],
    ).clean(source)


def _is_kept(tag: str, name: str, value: str) -> bool:
    return not name.startswith("on") and name not in {"srcset", "ping", "background", "poster"}


class _AnyStyle:
    """Styles stay as they are: the page's policy keeps them from loading anything."""

    def sanitize_css(self, style: str) -> str:
        return style


def _pictures_by(picture: Callable[[str], str]) -> type[Filter]:
    """A filter, as bleach takes one, that embeds pictures and leaves code out."""

    class Pictures(Filter):
        def __iter__(self) -> Iterator[dict]:
            inside = ""
            for token in super().__iter__():
                name = token.get("name", "")
                if inside or name in CODE:
                    inside = "" if token["type"] == "EndTag" and name == inside else inside or name
                elif name == "img":
                    yield _shown(token, picture)
                elif name in {"audio", "source"} and (None, "src") in (token.get("data") or ()):
                    yield _heard(token)
                else:
                    yield token

    return Pictures


def _heard(token: dict) -> dict:
    """A player's token with its sound in fewer bytes."""
    values = token["data"]
    values[None, "src"] = found = as_flac(values[None, "src"])
    if (None, "type") in values and found.startswith("data:audio/flac"):
        values[None, "type"] = "audio/flac"
    return token


def _shown(token: dict, picture: Callable[[str], str]) -> dict:
    """A picture's token with its content, or a text in its place."""
    values = token["data"]
    address = values.get((None, "src"), "")
    try:
        values[None, "src"] = picture(address)
    except (ValueError, OSError):
        words = values.get((None, "alt"), "")
        return {"type": "Characters", "data": f"{words} [picture left out: {address}]".lstrip()}
    return token
