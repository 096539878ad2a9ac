"""How the values of a picture file become bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lab.data.image_files import brightest, check_range, read, read_upload, rgb

SIDE = 4
GREY, COLOUR = (1, SIDE, SIDE), (3, SIDE, SIDE)
HALF = np.arange(SIDE) < SIDE // 2  # the columns that are transparent; the others are black


def columns(left, right):
    """A picture of two colours."""
    return np.where(HALF[None, :, None], left, right).repeat(SIDE, 0).squeeze()


def saved(picture, kind="PNG", **settings):
    target = io.BytesIO()
    picture.save(target, kind, **settings)
    return target.getvalue()


def pil(left, right, kind="PNG", **settings):
    return saved(Image.fromarray(columns(left, right).astype(np.uint8)), kind, **settings)


def palette(kind="PNG", **settings):
    """A hidden colour, and black."""
    picture = Image.fromarray(columns(1, 0).astype(np.uint8))
    picture = picture.convert("P")
    picture.putpalette([0, 0, 0, 200, 30, 90])
    return saved(picture, kind, **settings)


def png(depth, kind, pixels, key=None):
    """What Pillow does not write: `pixels` are of one row, `kind` is PNG's colour type."""
    bits = "".join(f"{value:0{depth}b}" for value in np.ravel(pixels))
    row = b"\0" + bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))
    head = b"IHDR" + struct.pack(">IIBBBBB", SIDE, SIDE, depth, kind, 0, 0, 0)
    parts = [head, b"IDAT" + zlib.compress(row * SIDE), b"IEND"]
    if key is not None:
        parts.insert(1, b"tRNS" + np.array(key, ">u2").tobytes())
    chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(values, sample_format=1, photometric=1, extra=None, bits=None):
    """What Pillow does not write: values [H, W] or [H, W, channels] with their own byte order."""
    order, channels = "<>"[values.dtype.str[0] == ">"], values[0, 0].size
    bits = bits or 8 * values.dtype.itemsize
    tags = {
        256: [SIDE],
        257: [SIDE],
        258: [bits] * channels,
        259: [1],
        262: [photometric],
        273: [0],  # where the values begin
        277: [channels],
        279: [values.nbytes],
        338: [extra],
        339: [sample_format] * channels,
    }
    tags = {tag: value for tag, value in tags.items() if value != [None]}
    tags[273] = [8 + 2 + 12 * len(tags) + 4]
    data = [b"II*\0" if order == "<" else b"MM\0*", struct.pack(f"{order}IH", 8, len(tags))]
    for tag, value in tags.items():
        padded = (value + [0])[:2]
        data.append(struct.pack(f"{order}HHIHH", tag, 3, len(value), *padded))
    return b"".join([*data, bytes(4), values.tobytes()])


def opened(data, shape=COLOUR, **settings):
    image = read(io.BytesIO(data), shape, **settings)
    assert image.shape == shape and image.dtype == torch.uint8
    return image


DEEP = columns(30_000, 0)
TRANSPARENT = {
    "RGBA": pil([200, 30, 90, 0], [0, 0, 0, 255]),
    "LA": pil([77, 0], [0, 255]),
    "PA": tiff(columns([77, 0], [0, 255]).astype("u1"), extra=2),
    "associated alpha in grey": tiff(columns([0, 0], [0, 255]).astype("u1"), extra=1),
    "TIFF": pil([200, 30, 90, 0], [0, 0, 0, 255], "TIFF"),
    "WebP": pil([200, 30, 90, 0], [0, 0, 0, 255], "WEBP", lossless=True, exact=True),
    "GIF": palette("GIF", transparency=1),
    "palette, index": palette(transparency=1),
    "palette, bytes": palette(transparency=b"\xff\0"),
    "a colour": png(8, 2, columns([9, 9, 9], [0, 0, 0])[0], [9, 9, 9]),
    "a grey": png(8, 0, columns(9, 0)[0], 9),
    "a grey of 4 bits": png(4, 0, columns(9, 0)[0], 9),
    "a grey of 2 bits": png(2, 0, columns(1, 0)[0], 1),
    "white of 1 bit": png(1, 0, columns(1, 0)[0], 1),
    "a grey of 16 bits": png(16, 0, DEEP[0], 30_000),
    "a colour of 16 bits": png(16, 2, columns([30_000] * 3, [0] * 3)[0], [30_000] * 3),
    "grey and alpha of 16 bits": png(16, 4, columns([30_000, 0], [0, 65_535])[0]),
    "RGBA of 16 bits": png(16, 6, columns([30_000] * 3 + [0], [0] * 3 + [65_535])[0]),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_shows_the_background(name):
    data = TRANSPARENT[name]
    for background, seen in {"white": [255] * 3, "blue": [0, 0, 255]}.items():
        image = opened(data, background=background)
        assert image.permute(1, 2, 0).tolist() == columns(seen, [0, 0, 0]).tolist()
        assert torch.equal(read_upload(data, COLOUR, background=background), image)
    assert opened(data, GREY, background=[9, 9, 9]).tolist() == [columns(9, 0).tolist()]
    assert opened(data, GREY).tolist() == [columns(255, 0).tolist()]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_is_opaque_does_not_depend_on_alpha(mode, shape):
    picture = Image.fromarray(noise(40, 30, len(mode)).squeeze())
    plain = opened(saved(picture), shape)
    for other in (mode if mode == "RGB" else "LA", "RGBA"):
        assert torch.equal(opened(saved(picture.convert(other)), shape, background="red"), plain)


def test_alpha_is_the_same_in_grey_and_in_colour():
    alpha, grey = Image.fromarray(noise(9, 9)), Image.fromarray(noise(9, 9)[::-1].copy())
    found = [
        opened(saved(Image.merge(mode, [grey] * (len(mode) - 1) + [alpha])), background="green")
        for mode in ("LA", "RGBA")
    ]
    assert torch.equal(*found)
    assert 0 < found[0].float().std()


RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
SIXTEEN = (RAMP * 65_535).astype(np.uint16)


def pgm(most):
    values = (RAMP * most).astype(">u2")
    return f"P5 {SIDE} {SIDE} {most}\n".encode() + values.tobytes(), values


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(SIXTEEN)),
        saved(Image.fromarray(SIXTEEN), "TIFF"),
        saved(Image.fromarray(SIXTEEN), "TIFF", compression="tiff_lzw"),
        tiff(SIXTEEN.astype(">u2")),
        tiff(65_535 - SIXTEEN, photometric=0),
        pgm(65_535)[0],
    ],
    ids=["PNG", "TIFF", "LZW", "big-endian", "white is 0", "PGM"],
)
def test_sixteen_bits_become_eight(data):
    assert torch.equal(opened(data, GREY)[0], torch.from_numpy(np.round(SIXTEEN / 257)).byte())
    assert torch.equal(opened(data), opened(data, GREY).expand(COLOUR))
    assert torch.equal(read_upload(data, GREY), opened(data, GREY))


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_range_becomes_black_and_white(white_is_zero):
    expected = np.round((SIXTEEN.astype(float) - 1000) / 3095 * 255).clip(0, 255)
    data = tiff(SIXTEEN, photometric=int(not white_is_zero))
    found = opened(data, GREY, value_range=[1000, 4095])[0].double().numpy()
    assert ((255 - found if white_is_zero else found) == expected).all()


def test_sixteen_bits_are_turned_as_exif_says():
    exif = Image.Exif()
    exif[274] = 6
    turned = opened(saved(Image.fromarray(SIXTEEN), exif=exif), GREY)
    assert torch.equal(turned.rot90(dims=(1, 2)), opened(saved(Image.fromarray(SIXTEEN)), GREY))


@pytest.mark.parametrize("most", [1023, 4095])
def test_a_pgm_says_what_is_white(most):
    data, values = pgm(most)
    expected = np.round(values / most * 255).tolist()
    assert opened(data, GREY)[0].tolist() == expected
    assert opened(data, GREY, value_range=[0, most])[0].tolist() == expected
    assert brightest(io.BytesIO(data)) == pytest.approx((most, most))


def test_twelve_bits_in_a_row_have_their_own_white():
    packed = np.array([[0x00, 0x08, 0x00, 0xFF, 0xF1, 0x23]] * SIDE, dtype="u1")  # 4 of 12 bits
    data = tiff(packed, bits=12)
    expected = np.round(np.array([0x000, 0x800, 0xFFF, 0x123]) / 4095 * 255)
    assert opened(data, GREY)[0].tolist() == [expected.tolist()] * SIDE


NEEDS_RANGE = {
    "floats": RAMP.astype("<f4"),
    "big-endian floats": RAMP.astype(">f4"),
    "signed": (RAMP * 3000 - 1000).astype("<i2"),
    "32 bits": (RAMP * 4e9).astype("<u4"),
    "32 bits, signed": (RAMP * 4e9 - 2e9).astype("<i4"),
}


@pytest.mark.parametrize("name", NEEDS_RANGE)
def test_what_has_no_range_needs_one(name):
    values = NEEDS_RANGE[name]
    data = tiff(values, {"f": 3, "i": 2, "u": 1}[values.dtype.kind])
    kind = "floats" if "floats" in name else "integers of 32 bits or with a sign"
    message = f"it holds {kind}, .*data.value_range=.LOWEST,HIGHEST.$"
    for refused in (lambda: opened(data), lambda: read_upload(data, COLOUR)):
        with pytest.raises(ValueError, match=message):
            refused()
    low, high = np.quantile(values.astype(float), [0.25, 0.75])
    expected = np.round((values - low) / (high - low) * 255).clip(0, 255)
    found = opened(data, GREY, value_range=[float(low), float(high)])[0]
    assert np.abs(found.numpy() - expected).max() <= 1  # where it was half way between two


def test_infinite_values_are_clipped_and_those_that_are_no_numbers_refused():
    values = RAMP.astype("<f4")
    values[0, :2] = -np.inf, np.inf
    assert opened(tiff(values, 3), GREY, value_range=[0, 1])[0, 0, :2].tolist() == [0, 255]
    values[1, 1] = np.nan
    with pytest.raises(ValueError, match="some of its pixels are not a number"):
        opened(tiff(values, 3), value_range=[0, 1])


def test_a_range_leaves_eight_bits_alone_and_refuses_what_it_cannot_scale():
    plain = saved(Image.fromarray(noise(SIDE, SIDE, 3)))
    assert torch.equal(opened(plain, value_range=[0, 4095]), opened(plain))
    with pytest.raises(ValueError, match="of its 16 bits a channel only the upper 8 are read"):
        opened(TRANSPARENT["RGBA of 16 bits"], value_range=[0, 4095])


@pytest.mark.parametrize(
    ("background", "message"),
    [
        ("whit", "got 'whit'; did you mean white"),
        ("#ffffff80", "got '#ffffff80'"),
        ("", "got ''"),
        ([1, 2], r"got \[1, 2\]"),
        ([0, 0, 256], r"got \[0, 0, 256\]"),
        ([0, 0, True], r"got \[0, 0, True\]"),
        ([0.5, 0, 0], r"got \[0.5, 0, 0\]"),
    ],
)
def test_a_background_is_a_colour(background, message):
    with pytest.raises(ValueError, match=f"^background must be a colour's name or .*, {message}$"):
        rgb(background)
    assert rgb("lime") == rgb("#00ff00") == rgb([0, 255, 0]) == (0, 255, 0)


@pytest.mark.parametrize(
    "value_range", [[], [1], [1, 0], [0, 0], [0, 1, 2], [0, np.inf], [np.nan, 1]]
)
def test_a_range_is_two_numbers(value_range):
    with pytest.raises(ValueError, match=r"^value_range must be .LOWEST,HIGHEST., got \["):
        check_range(value_range)
