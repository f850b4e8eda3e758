"""What a file is, judged by its first bytes, and how to convert an image that is not read."""

import re
from pathlib import Path

DECODERS = {  # Pillow's name of what decodes each format; none of them runs another program
    "PNG": "PNG",
    "JPEG": "JPEG",
    "WebP": "WEBP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
    "JPEG 2000": "JPEG2000",
    "AVIF": "AVIF",
    "HEIC": "HEIF",
    "PPM": "PPM",
    "QOI": "QOI",
    "DDS": "DDS",
    "ICO": "ICO",
    "PCX": "PCX",
    "SGI": "SGI",
    "TGA": "TGA",
}
RAW_ENDINGS = frozenset(
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .iiq"
    " .gpr .raw .rwl .mrw .erf .mef .mos .dcr .kdc .srf .fff .ari .cap .nksc".split()
)
DRAWING_ENDINGS = frozenset(  # of programs that draw in layers; several of these are ZIP files inside
    ".kra .ora .procreate .xcf .clip .afphoto .afdesign .sai .sai2 .mdp .pdn .psp .pspimage .sketch .blend .cdr".split()
)
ENDINGS_OF = {  # what each format's files may be called without surprising anyone
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "WebP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "JPEG 2000": ".jp2 .j2k .j2c .jpc .jpf .jpx",
    "AVIF": ".avif .avifs .heif .hif",
    "HEIC": ".heic .heif .hif .heics .heifs",
    "PPM": ".ppm .pgm .pbm .pnm",
    "QOI": ".qoi",
    "DDS": ".dds",
    "ICO": ".ico .cur",
    "PCX": ".pcx",
    "SGI": ".sgi .rgb .bw",
    "TGA": ".tga",
}
IMAGE_ENDINGS = frozenset(ending for endings in ENDINGS_OF.values() for ending in endings.split())
CONVERT = {  # formats that hold images and are not read
    "JPEG XL": "convert it to PNG: djxl FILE.jxl FILE.png",
    "camera raw": "export it as TIFF, PNG or JPEG from the camera's program or darktable",
    "Photoshop": "export it as PNG",
    "layered drawing": "export it as PNG from the program that made it",
    "SVG": "export it as PNG at the size that you train at, or larger",
    "PDF": "convert its pages to PNG: pdftoppm -png FILE.pdf PAGE",
    "PostScript": "convert it to PNG: gs -sDEVICE=png16m -r300 -o FILE.png FILE.eps",
    **dict.fromkeys(
        ("JPEG XR", "BPG", "FLIF", "ICNS", "FITS", "DICOM", "WMF", "EMF", "XBM", "XPM"),
        "convert it to PNG: magick FILE FILE.png",
    ),
    "OpenEXR": "convert it to an 8-bit PNG in sRGB",
    "Radiance HDR": "convert it to an 8-bit PNG in sRGB",
    "video": "take single frames from it: ffmpeg -i FILE -vf fps=1 FRAME%04d.png",
    "archive": "unpack it",
}
WRONG = {  # what lies in place of an image, and what to do
    "empty": ("is empty", "copy it again"),
    "HTML": ("is an HTML page, not an image", "download the image itself: a web page was saved in its place"),
    "XML": ("is an XML document, not an image", "download it again: servers answer so when access is denied"),
    "JSON": ("is a JSON document, not an image", "download it again: servers answer so to report an error"),
    "zeros": ("contains nothing but zero bytes", "copy it again: an interrupted copy or download looks like this"),
    "git-annex pointer": ("is a git-annex pointer, not the image itself", "run `git annex get` in its repository"),
    "Git LFS pointer": ("is a Git LFS pointer, not the image itself", "run `git lfs pull` in its repository"),
    "text": ("is a text file, not an image", "replace it or take it out of the folder"),
}
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2")
SIGNATURES = (
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"GIF8[79]a", "GIF"),
    (rb"RIFF....WEBP", "WebP"),
    (rb"RIFF....AVI ", "video"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"II\*\0.{4}CR", "camera raw"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", "JPEG XL"),
    (rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s", "PPM"),
    (rb"qoif", "QOI"),
    (rb"DDS \x7c\0\0\0", "DDS"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "ICO"),
    (rb"\x0a[\0\x02-\x05]\x01[\x01\x02\x04\x08]", "PCX"),
    (rb"\x01\xda[\0\x01][\x01\x02]", "SGI"),
    (rb"8BPS", "Photoshop"),
    (rb"FUJIFILMCCD-RAW|IIRO|IIU\0|FOVb", "camera raw"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR"),
    (rb"\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01", "video"),
    (rb"PK\x03\x04|Rar!|7z\xbc\xaf|\x1f\x8b", "archive"),
    (rb"version https://git-lfs", "Git LFS pointer"),
    (rb"(\.\./)*(\.git)?/annex/objects/", "git-annex pointer"),
    (rb"gimp xcf|CSFCHUNK|\x00\xffKA|BLENDER|PDN3|Paint Shop Pro", "layered drawing"),
    (rb"II\xbc[\0\x01]", "JPEG XR"),
    (rb"BPG\xfb", "BPG"),
    (rb"FLIF", "FLIF"),
    (rb"icns\0", "ICNS"),
    (rb"SIMPLE  = +T", "FITS"),
    (rb".{128}DICM", "DICOM"),
    (rb"\xd7\xcd\xc6\x9a", "WMF"),
    (rb"\x01\0\0\0.{36} EMF", "EMF"),
    (rb"(/\*.*?\*/\s*)?#define \w+_width \d", "XBM"),
    (rb"/\* XPM \*/", "XPM"),
    (rb"BZh[1-9]1AY&SY|\x28\xb5\x2f\xfd|\xfd7zXZ\0|.{257}ustar", "archive"),
    (rb"\0{32}\0*$", "zeros"),
)
HEAD = 512  # bytes that are looked at


def kind_of(head: bytes, ending: str = "") -> str:
    """The format of a file, judged by its first bytes: a name such as "JPEG", "HTML" or "text"; "" if unknown.

    head: the first 512 bytes or more. ending: of the file's name, such as ".dng"; it tells camera raw files from TIFF
    and layered drawings from ZIP, and finds TGA, which has no signature.
    """
    if not head:
        return "empty"
    kind = _by_content(head[:HEAD])
    if kind in ("TIFF", "") and ending.lower() in RAW_ENDINGS:
        return "camera raw"
    if kind in ("archive", "") and ending.lower() in DRAWING_ENDINGS:
        return "layered drawing"
    return "TGA" if kind == "" and ending.lower() == ".tga" else kind


def kind_of_file(path: Path) -> str:
    """The format of a file, judged by its first bytes and its ending; "" if unknown or if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD), path.suffix)
    except OSError:
        return ""


def _by_content(head: bytes) -> str:
    for signature, kind in SIGNATURES:
        if re.match(signature, head, re.DOTALL):
            return kind
    return _iso_media(head) if head[4:8] == b"ftyp" else _text(head)


def _iso_media(head: bytes) -> str:
    length = int.from_bytes(head[:4], "big")
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, min(length, len(head)), 4))]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    if any(brand in HEIC_BRANDS for brand in brands):
        return "HEIC"
    return "camera raw" if b"crx " in brands else "video"


def _text(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text"  # UTF-16
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else it is a character that `head` cuts
            return ""
        text = head[: error.start].decode("utf-8-sig")
    if "\0" in text:
        return ""
    beginning = re.sub(r"^(\s*<!--.*?-->)+", "", text, flags=re.DOTALL).lstrip().lower()
    if beginning.startswith(("<!doctype html", "<html", "<head", "<body", "<script")):
        return "HTML"
    if beginning.startswith("<svg") or ("<svg" in beginning and beginning.startswith(("<?xml", "<!doctype svg"))):
        return "SVG"
    if beginning.startswith("<?xml"):
        return "XML"
    return "JSON" if beginning.startswith(("{", "[{")) else "text"
