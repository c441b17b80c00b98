"""Read language tags as people write them: ``zh-CN``, ``zh_cn``, ``cmn``, ``EN``, ``eng``, ``English``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

# ISO 639-1 code, then its ISO 639-2 and 639-3 codes: the bibliographic one, and the languages of a macrolanguage
_CODES = """
aa:aar ab:abk ae:ave af:afr ak:aka,twi,fat am:amh an:arg ar:ara,arb,arz,ary,apc,acm,ajp,afb,acq,aeb,ars as:asm av:ava
ay:aym,ayr az:aze,azj,azb ba:bak be:bel bg:bul bi:bis bm:bam bn:ben bo:bod,tib br:bre bs:bos ca:cat ce:che ch:cha
co:cos cr:cre cs:ces,cze cu:chu cv:chv cy:cym,wel da:dan de:deu,ger dv:div dz:dzo ee:ewe el:ell,gre en:eng eo:epo
es:spa et:est,ekk eu:eus,baq fa:fas,per,pes,prs ff:ful,fuv fi:fin fj:fij fo:fao fr:fra,fre fy:fry ga:gle gd:gla
gl:glg gn:grn,gug gu:guj gv:glv ha:hau he:heb,iw hi:hin ho:hmo hr:hrv ht:hat hu:hun hy:hye,arm hz:her ia:ina
id:ind,in ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl,ice it:ita iu:iku ja:jpn jv:jav,jw ka:kat,geo kg:kon ki:kik kj:kua
kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau ks:kas ku:kur,kmr kv:kom kw:cor ky:kir la:lat lb:ltz lg:lug li:lim ln:lin
lo:lao lt:lit lu:lub lv:lav,lvs mg:mlg,plt mh:mah mi:mri,mao mk:mkd,mac ml:mal mn:mon,khk mr:mar ms:msa,may,zsm mt:mlt
my:mya,bur na:nau nd:nde ne:nep,npi ng:ndo nl:nld,dut nn:nno no:nor,nob,nb nr:nbl nv:nav ny:nya oc:oci oj:oji
om:orm,gaz or:ori,ory os:oss pa:pan pi:pli pl:pol ps:pus,pbt pt:por qu:que,quy rm:roh rn:run ro:ron,rum,mo ru:rus
rw:kin sa:san sc:srd sd:snd se:sme sg:sag si:sin sk:slk,slo sl:slv sm:smo sn:sna so:som sq:sqi,alb,als
sr:srp ss:ssw st:sot su:sun sv:swe sw:swa,swh ta:tam te:tel tg:tgk th:tha ti:tir tk:tuk tl:tgl,fil tn:tsn to:ton
tr:tur ts:tso tt:tat ty:tah ug:uig uk:ukr ur:urd uz:uzb,uzn ve:ven vi:vie vo:vol wa:wln wo:wol xh:xho yi:yid,ji,ydd
yo:yor za:zha zh:zho,chi,cmn zu:zul
"""
_NAMES = """
ar:arabic ca:catalan cs:czech cy:welsh da:danish de:german,deutsch el:greek en:english es:spanish et:estonian
fa:persian,farsi fi:finnish fr:french he:hebrew hi:hindi hu:hungarian id:indonesian it:italian ja:japanese ko:korean
lv:latvian lt:lithuanian mn:mongolian nl:dutch no:norwegian pl:polish pt:portuguese ro:romanian ru:russian
sl:slovenian sv:swedish ta:tamil th:thai tr:turkish uk:ukrainian vi:vietnamese zh:chinese,mandarin yue:cantonese
"""
"""English names, which some data sets have in place of codes."""
_CODE_OF = {
    name: code
    for entry in f"{_CODES} {_NAMES}".split()
    for code, names in [entry.split(":")]
    for name in (code, *names.split(","))
}
CHINESE = frozenset({"zh", "yue", "nan", "hak", "wuu", "gan", "hsn", "cjy", "lzh"})
"""Languages in Chinese characters."""
WITHOUT_SPACES = CHINESE | {"ja", "th", "lo", "km", "my"}
"""Languages that are written without spaces between words."""
_KNOWN = CHINESE | set(_CODE_OF.values())
_SCRIPTS_WITHOUT_SPACES = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Hiragana, Katakana
)
_UNSPACED = re.compile(f"[{_SCRIPTS_WITHOUT_SPACES}]")
_SPACE_BESIDE = re.compile(rf"\s+(?=[{_SCRIPTS_WITHOUT_SPACES}])|(?<=[{_SCRIPTS_WITHOUT_SPACES}])\s+")


@lru_cache(maxsize=4096)
def canonical_tag(tag: str | None) -> str:
    """Return ``tag`` in the form of BCP 47, such as ``zh-CN`` for ``zh_cn``; empty for None or an empty tag.

    The language is its ISO 639-1 code if it has one: ``en`` for ``EN``, ``eng`` and ``English``. An unknown language
    keeps its name, in lower case.
    """
    parts = [part for part in re.split(r"[-_\s]+", re.split(r"[.@]", tag or "")[0]) if part]
    if not parts:
        return ""
    language, *rest = parts
    code = _CODE_OF.get(language.lower(), language.lower())
    if code == "zh" and rest and rest[0].lower() in CHINESE - {"zh"}:  # zh-yue is an old form of yue
        code, *rest = rest[0].lower(), *rest[1:]
    return "-".join([code, *map(_subtag, rest)])


def language_code(tag: str | None) -> str | None:
    """Return the language of ``tag`` as an ISO 639-1 code if it has one, e.g. ``zh`` for ``zh-CN`` or ``cmn``.

    Return None for None or an empty tag.
    """
    return canonical_tag(tag).partition("-")[0] or None


def is_known(tag: str | None) -> bool:
    """Return True if the language of ``tag`` is one of ISO 639-1 or a Chinese language."""
    return tag is not None and language_code(tag) in _KNOWN


def is_plausible(tag: str) -> bool:
    """Return True if the language of ``tag`` is known, or written as a code of ISO 639-3 is: three letters."""
    return is_known(tag) or bool(re.fullmatch("[a-z]{3}", language_code(tag) or ""))


def split_unspaced(text: str) -> str:
    """Return ``text`` with spaces around each character of a script that has no spaces between words."""
    return _UNSPACED.sub(r" \g<0> ", text)


def join_unspaced(text: str) -> str:
    """Return ``text`` without the spaces before and after characters of scripts that have no spaces between words."""
    return _SPACE_BESIDE.sub("", text)


def unspaced_script(texts: Iterable[str]) -> str | None:
    """Return ``han`` or ``other`` if most letters of ``texts`` are in scripts without spaces between words.

    It is ``han`` if they are Chinese characters without kana. Return None for other texts.
    """
    letters = "".join(texts)
    unspaced = _UNSPACED.findall(letters)
    if 2 * len(unspaced) <= sum(map(str.isalpha, letters)):
        return None
    han = sum(map(_is_han, unspaced))
    return "han" if han == len(unspaced) else "other"


def _is_han(char: str) -> bool:
    return char >= "\u2e80" and not "\u3040" <= char <= "\u30ff" and not "\ua9e0" <= char <= "\uaa7f"


def _subtag(part: str) -> str:
    """Return a region in upper case, a script in title case, and anything else in lower case."""
    if len(part) == 2:
        return part.upper()
    return part.title() if len(part) == 4 and part.isalpha() else part.lower()
