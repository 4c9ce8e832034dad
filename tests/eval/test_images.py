"""Every kind of picture a user may hand over is converted to 8-bit RGB or refused in one line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vift_eval.images import ImageError, open_image

RED = (255, 0, 0)


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG that claims this size and holds nothing."""

    def chunk(kind, data):
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "L", "LA", "1"])
def test_eight_bit_modes_become_rgb_with_their_colour(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    colour = (255, 255, 255) if mode in ("L", "LA", "1") else RED
    Image.new("RGB", (6, 4), colour).convert(mode).save(tmp_path / f"picture.{suffix}")
    image, notes = open_image(tmp_path / f"picture.{suffix}")
    assert (image.mode, image.size, notes) == ("RGB", (6, 4), [])
    assert np.abs(np.array(image.getpixel((2, 2))) - colour).max() <= 2


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    image, notes = open_image(tmp_path / "deep.png")
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    assert "16-bit" in notes[0]


def test_transparency_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "alpha.png")
    opened, _ = open_image(tmp_path / "alpha.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_transparent_palette_entry_is_laid_on_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    opened, _ = open_image(tmp_path / "palette.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_animation_gives_its_first_frame_and_says_so(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    image, notes = open_image(tmp_path / "film.gif")
    assert image.getpixel((1, 1)) == RED
    assert "3 frames" in notes[0] and "first" in notes[0]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.new("RGB", (8, 2), RED).save(tmp_path / "phone.jpg", exif=exif)
    assert open_image(tmp_path / "phone.jpg")[0].size == (2, 8)


def refused(path, *words):
    with pytest.raises(ImageError) as caught:
        open_image(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message


def test_missing_file_and_folder_are_refused(tmp_path):
    refused(tmp_path / "absent.png", "no such file")
    refused(tmp_path, "folder")


def test_zero_byte_file_is_refused(tmp_path):
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty")


def test_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    refused(tmp_path / "notes.png", "kind this program cannot read")


def test_truncated_and_damaged_pictures_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "gif", "tiff", "bmp", "webp"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(path)
    (tmp_path / "header.png").write_bytes(png_header(8, 8))
    refused(tmp_path / "header.png")


def test_every_corruption_is_an_image_error_or_a_picture(tmp_path):
    """No byte flipped in any common format lets one of Pillow's own exceptions through."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "gif", "tiff", "bmp", "webp"):
        path = tmp_path / f"flip.{suffix}"
        Image.fromarray(noise).save(path)
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for position in rng.integers(0, len(bad), 3):
                bad[position] = rng.integers(0, 256)
            path.write_bytes(bytes(bad))
            try:
                assert open_image(path)[0].mode == "RGB"
            except ImageError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("size", [(9_000, 9_000), (60_000, 60_000)])
def test_decompression_bomb_is_refused_before_decoding(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    refused(tmp_path / "bomb.png", "million pixels")


def test_floating_point_pixels_are_rescaled_and_those_without_a_number_refused(tmp_path):
    Image.fromarray(np.array([[-2.0, 0.0, 2.0]], dtype=np.float32)).save(tmp_path / "float.tiff")
    image, notes = open_image(tmp_path / "float.tiff")
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255] and "floating-point" in notes[0]
    Image.fromarray(np.full((3, 3), np.nan, dtype=np.float32)).save(tmp_path / "nan.tiff")
    refused(tmp_path / "nan.tiff", "finite")
