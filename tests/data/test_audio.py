"""Reading, resampling and checking audio."""

import struct

import numpy as np
import pytest
import soundfile

from metajax.data.audio import at_silences, check_wave, read_audio, resample
from metajax.errors import InputError

RATE = 16000
LOSSLESS = {"wav": {}, "flac": {}, "rf64": {"format": "RF64"}, "wavex": {"format": "WAVEX"}, "aiff": {}}
LOSSY = {"ogg": {}, "mp3": {}, "opus": {"format": "OGG", "subtype": "OPUS"}}


def noise(samples=80000, channels=1):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels))
    return np.round(wave * 32768) / 32768  # exact in 16 bits


def sine(hertz, rate, seconds=1.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate).astype(np.float32)


def write(path, wave, rate=RATE):
    soundfile.write(path, wave, rate, **(LOSSLESS | LOSSY)[path.suffix[1:]])
    return path


def cut(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    return path


def with_sizes(path, riff, data):
    """Overwrite the sizes that a WAV header gives for the file and for its samples."""
    content = path.read_bytes()
    at = content.index(b"data") + 4
    path.write_bytes(
        content[:4] + struct.pack("<I", riff) + content[8:at] + struct.pack("<I", data) + content[at + 4 :]
    )
    return path


def without_xing(path):
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 2) :])
    return path


def changed(path, change):
    path.write_bytes(change(path.read_bytes()))
    return path


def join(path, *others):
    path.write_bytes(b"".join(other.read_bytes() for other in (path, *others)))
    return path


def with_open_packet(content):
    """The last OGG page says that its last packet goes on."""
    at = content.rindex(b"OggS\0")
    page = bytearray(content[at:])
    page[26 + page[26]] = 255
    return content[:at] + bytes(page) + bytes(255)


def without_two_frames(content):
    for _ in range(2):
        content = content[: content.rindex(content[:2])]
    return content


def without_end_flag(content, extra=0):
    """Take the flag from the last OGG page; of Opus all samples then count: only a flagged page may drop some."""
    at = content.rindex(b"OggS\0")
    page = bytearray(content[at:])
    page[5] &= ~4
    if b"OpusHead" in content:
        before = content.rindex(b"OggS\0", 0, at)
        packets = sum(value < 255 for value in page[27 : 27 + page[26]])
        page[6:14] = struct.pack(
            "<q", struct.unpack("<q", content[before + 6 : before + 14])[0] + 960 * packets + extra
        )
    page[22:26] = bytes(4)
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = ((value << 1) ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", value)
    return content[:at] + bytes(page)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_lossless_files_give_the_mean_of_their_channels(tmp_path, kind, channels):
    wave = noise(3000, channels)
    read = read_audio(write(tmp_path / f"a.{kind}", wave), RATE)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wave.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_files_give_nearly_the_same(tmp_path, kind, channels):
    wave = np.tile(0.5 * sine(440, RATE)[:, None], (1, channels))
    read = read_audio(write(tmp_path / f"a.{kind}", wave), RATE)
    assert read.shape == (RATE,)
    assert np.abs(read - wave[:, 0])[1000:-1000].max() < 0.05


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "opus"])
def test_a_segment_is_that_part_of_the_whole(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", noise())
    whole = read_audio(path, RATE)
    for start, duration in [(0.0, 0.05), (1.25, 0.05), (4.9375, 0.05), (2.0, 3.0), (0.0, 5.0)]:
        segment = read_audio(path, RATE, start=start, duration=duration)
        np.testing.assert_allclose(segment, whole[round(start * RATE) : round((start + duration) * RATE)], atol=1e-5)
    np.testing.assert_allclose(read_audio(path, RATE, start=4.0), whole[4 * RATE :], atol=1e-5)


def test_a_segment_is_read_without_the_rest(tmp_path):
    path = cut(write(tmp_path / "a.flac", noise()), 0.5)
    np.testing.assert_allclose(read_audio(path, RATE, duration=1.0), noise()[:RATE, 0], atol=1e-7)
    with pytest.raises(InputError, match=r"a\.flac"):
        read_audio(path, RATE, start=3.0, duration=1.0)


@pytest.mark.parametrize("rate", [8000, 11127, 22050, 44100, 48000])
def test_any_rate_becomes_the_asked_one(tmp_path, rate):
    path = write(tmp_path / "a.flac", 0.5 * sine(1000, rate), rate)
    read = read_audio(path, RATE)
    assert len(read) == RATE
    np.testing.assert_allclose(read[200:-200], 0.5 * sine(1000, RATE)[200:-200], atol=1e-4)
    assert abs(len(read_audio(path, RATE, start=0.25, duration=0.5)) - RATE // 2) <= 1


@pytest.mark.parametrize("name", ["a.raw", "sieben \u0663.wav", "no suffix"])
def test_file_names_mean_nothing(tmp_path, name):
    path = write(tmp_path / "a.wav", noise(1000)).rename(tmp_path / name)
    assert len(read_audio(path, RATE)) == len(read_audio(str(path), RATE)) == 1000


STREAMED = [(2**32 - 1, 2**32 - 1), (2**31 - 1, 0x7FFFF000), (2**31 + 36, 2**31), (8, 0), (2**32 - 1, 0)]
UNFINISHED = [(0, 0), (36, 0), (44, 0), (2036, 0), (236, 200), (2036, 200), (0, 200)]
TOO_LARGE = [(2036, 2044), (2036, 2001), (2036, 5000), (2044, 2044), (2080, 2044), (2**31, 2000), (0, 2000)]


@pytest.mark.parametrize("sizes", STREAMED + UNFINISHED + TOO_LARGE)
def test_a_wav_header_with_wrong_sizes_loses_nothing(tmp_path, sizes):
    path = with_sizes(write(tmp_path / "a.wav", noise(1000)), *sizes)
    np.testing.assert_allclose(read_audio(path, RATE), noise(1000)[:, 0], atol=1e-7)
    np.testing.assert_allclose(read_audio(path, RATE, start=0.05), noise(1000)[800:, 0], atol=1e-7)


TAILS = {
    "chunk": b"LIST" + struct.pack("<I", 4) + b"INFO",
    "two chunks": b"id3 " + struct.pack("<I", 3) + b"abc\0" + b"bext" + struct.pack("<I", 2) + b"ab",
    "ID3v1": b"TAG" + bytes(125),
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("tail", TAILS)
def test_what_follows_the_samples_of_a_wav_is_no_sound(tmp_path, tail):
    path = changed(write(tmp_path / "a.wav", noise(1000)), lambda content: content + TAILS[tail])
    assert len(read_audio(path, RATE)) == 1000
    with_sizes(path, len(path.read_bytes()) - 8, 2000)
    assert len(read_audio(path, RATE)) == 1000


def test_an_empty_wav_with_chunks_behind_holds_no_samples(tmp_path):
    path = changed(write(tmp_path / "a.wav", noise(0)), lambda content: content + TAILS["chunk"])
    with pytest.raises(InputError, match="holds no samples"):
        read_audio(path, RATE)


@pytest.mark.parametrize("front", [b"", b"ID3\4\0\0" + bytes([0, 4, 35, 112]) + b"\xff\xd8" * 35000, bytes(5000)])
@pytest.mark.parametrize("back", [b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(1500), b"\xff\xfb\x90"])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_is_read_whole_with_and_without_its_header(tmp_path, front, back, mode):
    path, wave = tmp_path / "a.mp3", 0.5 * sine(440, RATE, 2.0) * np.repeat([0, 1, 0, 1], RATE // 2)
    soundfile.write(path, wave, RATE, format="MP3", bitrate_mode=mode, compression_level=0.6)
    changed(path, lambda content: front + content + back)
    given = read_audio(path, RATE)
    assert given.shape == wave.shape and np.abs(given - wave).max() < 0.1
    # Without the header, the delay of the encoder and the decoder stays, 1105 samples, and some padding.
    changed(
        path, lambda content: front + content[len(front) :][content[len(front) :].index(content[len(front) :][:2], 2) :]
    )
    bare = read_audio(path, RATE)
    assert len(wave) + 1105 <= len(bare) <= len(wave) + 1105 + 1152
    np.testing.assert_allclose(bare[1105:][: len(wave)], given, atol=1e-6)
    for start in (0.0, 0.7, 1.9):
        segment = read_audio(path, RATE, start=start, duration=0.1)
        np.testing.assert_allclose(segment, bare[round(start * RATE) :][: RATE // 10], atol=1e-6)


def test_an_mp3_cut_at_its_front_loses_only_what_is_missing(tmp_path):
    path = write(tmp_path / "a.mp3", 0.5 * sine(440, RATE, 4.0))
    bare = read_audio(without_xing(path), RATE)
    cut_out = read_audio(changed(path, lambda content: content[len(content) // 2 :]), RATE)
    np.testing.assert_allclose(cut_out[RATE // 2 :], bare[-len(cut_out) :][RATE // 2 :], atol=1e-6)


@pytest.mark.parametrize("field", [1, 2, 3])
def test_a_damaged_header_of_an_mp3_frame_is_told(tmp_path, field):
    path = without_xing(write(tmp_path / "a.mp3", 0.5 * sine(440, RATE, 4.0)))

    def damage(content):
        at = content.index(content[:2], len(content) // 2)
        return content[: at + field] + bytes([content[at + field] ^ 0xC8]) + content[at + field + 1 :]

    with pytest.raises(InputError, match=r"a\.mp3 is damaged or several MP3 files joined into one \(at byte \d+\)"):
        read_audio(changed(path, damage), RATE)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_an_ogg_without_its_end_flag_is_whole(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", noise())
    wave = read_audio(path, RATE)
    given = read_audio(changed(path, without_end_flag), RATE)
    assert len(given) == len(soundfile.read(path)[0])
    np.testing.assert_array_equal(given[: len(wave)], wave)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_ogg_streams_that_follow_one_another_are_all_read(tmp_path, kind):
    paths = [write(tmp_path / f"{place}.{kind}", noise()[: 30000 + 5000 * place]) for place in range(3)]
    wave = np.concatenate([read_audio(path, RATE) for path in paths])
    joined = join(*paths)
    np.testing.assert_allclose(read_audio(joined, RATE), wave, atol=1e-6)
    segment = read_audio(joined, RATE, start=1.5, duration=2.0)
    np.testing.assert_allclose(segment, wave[24000:56000], atol=1e-5)
    cut(joined, 0.9)
    with pytest.raises(InputError, match="cut short"):
        read_audio(joined, RATE)


CODECS = [("wav", "GSM610"), ("wav", "G721_32"), ("wav", "NMS_ADPCM_16"), ("au", "G723_24")]


@pytest.mark.parametrize("codec", [*CODECS, ("wav", "IMA_ADPCM"), ("wav", "ULAW"), ("caf", "ALAC_16")])
def test_codecs_that_cannot_seek_are_read(tmp_path, codec):
    path = tmp_path / f"a.{codec[0]}"
    soundfile.write(path, 0.5 * sine(440, RATE, 2.0), RATE, subtype=codec[1])
    whole = read_audio(path, RATE)
    assert len(whole) >= 2 * RATE and abs(whole.std() - 0.5 * np.sqrt(0.5)) < 0.1
    np.testing.assert_array_equal(read_audio(path, RATE, start=0.5, duration=1.0), whole[RATE // 2 : RATE * 3 // 2])


def test_a_long_file_is_read_in_blocks(tmp_path, monkeypatch):
    for kind in ("wav", "ogg", "mp3"):
        path = tmp_path / f"a.{kind}"
        soundfile.write(path, noise(100000, 2), 22050)
        whole = read_audio(path, RATE), read_audio(path, RATE, start=1.0, duration=2.0)
        with monkeypatch.context() as patch:
            patch.setattr("metajax.data.audio._BLOCK", 7000)
            np.testing.assert_allclose(read_audio(path, RATE), whole[0], atol=1e-5)
            np.testing.assert_allclose(read_audio(path, RATE, start=1.0, duration=2.0), whole[1], atol=1e-5)


def test_channels_that_cancel_leave_the_loudest(tmp_path):
    wave = 0.3 * sine(300, RATE)
    for channels in ([wave, -wave], [0.5 * wave, -0.55 * wave], [0.05 + wave, 0.05 - wave], [wave, -wave, 0 * wave]):
        given = read_audio(write(tmp_path / "a.wav", np.stack(channels, 1)), RATE)
        loudest = max(channels, key=np.var)
        assert min(np.abs(given - channel).max() for channel in channels if np.var(channel) == np.var(loudest)) < 1e-4
    for channels in ([wave, 0 * wave], [wave, 0 * wave, 0 * wave], [wave, -0.3 * wave], [0 * wave, 0 * wave]):
        given = read_audio(write(tmp_path / "a.wav", np.stack(channels, 1)), RATE)
        np.testing.assert_allclose(given, np.mean(channels, axis=0), atol=1e-4)


OTHERS = {
    "an MPEG-4 file": b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom",
    "a WebM or Matroska file": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01",
    "an AMR file": b"#!AMR\n",
    "an AAC file": b"\xff\xf1\x50\x80",
    "a Windows Media file": b"0&\xb2u\x8ef\xcf\x11",
    "a web page": b"\n<!DOCTYPE html><title>404</title>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a packed archive": b"PK\3\4",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_named(tmp_path, name):
    (tmp_path / "a.wav").write_bytes(OTHERS[name] + bytes(2000))
    with pytest.raises(InputError, match=rf"a\.wav is {name}.*, expected WAV, FLAC, OGG or MP3\.$"):
        read_audio(tmp_path / "a.wav", RATE)


BROKEN = {
    "does not exist": lambda folder: folder / "a.wav",
    "is a folder": lambda folder: folder,
    "is empty": lambda folder: cut(write(folder / "a.wav", noise(100)), 0),
    "holds no samples": lambda folder: write(folder / "a.wav", noise(0)),
    "not an audio file": lambda folder: cut(write(folder / "a.wav", noise(100)), 20),
    "NaN or infinite": lambda folder: folder / "nan.wav",
    "promises 160000 bytes of samples, it holds 119": lambda folder: cut(write(folder / "a.wav", noise()), 0.75),
    "promises 320096 bytes": lambda folder: cut(write(folder / "a.rf64", noise(80000, 2)), 0.75),
    "promises 160000": lambda folder: cut(write(folder / "a.wavex", noise()), -1),
    "promises 160008": lambda folder: cut(write(folder / "a.aiff", noise()), 0.75),
    "several WAV files joined": lambda folder: join(write(folder / "a.wav", noise()), folder / "a.wav"),
    "cut short .libsndfile": lambda folder: cut(write(folder / "a.flac", noise()), 0.75),
    "last OGG page": lambda folder: cut(write(folder / "a.ogg", noise()), 0.75),
    "OGG page is not": lambda folder: cut(write(folder / "a.ogg", noise()), -1),
    "OGG page is not whole": lambda folder: cut(write(folder / "a.opus", noise()), 0.75),
    "last OGG packet": lambda folder: changed(write(folder / "a.ogg", noise()), with_open_packet),
    "last MP3 frame": lambda folder: cut(write(folder / "a.mp3", noise()), 0.75),
    "MP3 frame is not whole": lambda folder: cut(without_xing(write(folder / "a.mp3", noise())), -1),
    "promises 141 MP3 frames, it holds 1..": lambda folder: changed(
        write(folder / "a.mp3", noise()), without_two_frames
    ),
    "several MP3 files joined": lambda folder: join(write(folder / "a.mp3", noise()), folder / "a.mp3"),
    "sample rate is 1 Hz, expected 6000 to": lambda folder: write(folder / "a.wav", noise(100), 1),
    "sample rate is 4000 Hz": lambda folder: write(folder / "a.wav", noise(), 4000),
    "streams of 16000 Hz and of 8000 Hz": lambda folder: join(
        write(folder / "a.ogg", noise()), write(folder / "b.ogg", noise(), 8000)
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_file_is_named(tmp_path, message):
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan, np.inf]), RATE, subtype="FLOAT")
    path = BROKEN[message](tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_audio(path, RATE)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "opus", "aiff"])
def test_any_damage_is_an_input_error_or_none(tmp_path, kind):
    path, numbers = write(tmp_path / f"a.{kind}", noise(20000)), np.random.default_rng(1)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    for trial in range(60):
        damaged = content[: numbers.integers(len(content))] if trial % 2 else content.copy()
        if trial % 2 == 0:
            damaged[numbers.integers(0, 200 if trial % 4 else len(content), 5)] = numbers.integers(0, 256, 5)
        path.write_bytes(damaged.tobytes())
        try:
            assert np.isfinite(read_audio(path, RATE)).all()
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("extra", [6000, 480000])
def test_an_ogg_that_promises_too_much_is_refused(tmp_path, extra):
    path = changed(write(tmp_path / "a.opus", noise()), lambda content: without_end_flag(content, extra))
    with pytest.raises(InputError, match=r"of its \d+ samples per channel can be read"):
        read_audio(path, RATE)


def test_a_flac_of_unknown_length_is_refused(tmp_path):
    path = write(tmp_path / "a.flac", noise())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(InputError, match="does not tell its length"):
        read_audio(path, RATE)


@pytest.mark.parametrize(
    "segment",
    [
        {"start": -0.1},
        {"start": float("nan")},
        {"start": 1.0},
        {"start": 1e300},
        {"start": 0.5, "duration": 0.6},
        {"start": 0.5, "duration": 0.511},
        {"start": 1.0, "duration": 0.005},
        {"duration": 0.0},
        {"duration": -1.0},
        {"duration": 1e-6},
        {"duration": float("inf")},
    ],
)
def test_a_segment_outside_the_file_is_refused(tmp_path, segment):
    path = write(tmp_path / "a.wav", noise(RATE))
    with pytest.raises(InputError, match=r"a\.wav"):
        read_audio(path, RATE, **segment)


def test_the_end_of_a_segment_may_be_rounded_to_hundredths(tmp_path):
    path = write(tmp_path / "a.wav", wave := noise(RATE)[: RATE - 60, :1])
    np.testing.assert_allclose(read_audio(path, RATE, start=0.5, duration=0.5), wave[RATE // 2 :, 0], atol=1e-4)


RATES = [(48000, 16000), (44100, 16000), (16000, 8000), (22050, 8000)]


def level(wave):
    """Level of the middle of a wave, in dB of a full sine."""
    return 10 * np.log10(2 * np.mean(np.square(wave[500:-500], dtype=np.float64)) + 1e-30)


@pytest.mark.parametrize("rates", RATES)
def test_what_is_above_the_new_nyquist_frequency_is_rejected(rates):
    from_rate, to_rate = rates
    tones = np.linspace(to_rate / 2 * 1.001, from_rate / 2 * 0.999, 12)
    assert max(level(resample(sine(hertz, from_rate), *rates)) for hertz in tones) < -95


@pytest.mark.parametrize("rates", RATES + [rates[::-1] for rates in RATES])
def test_what_is_below_91_percent_of_the_nyquist_frequency_is_kept(rates):
    from_rate, to_rate = rates
    for hertz in np.linspace(20, 0.91 * min(rates) / 2, 12):
        given, wanted = resample(sine(hertz, from_rate), *rates), sine(hertz, to_rate)
        assert len(given) == to_rate and given.dtype == np.float32
        assert level(given - wanted) < -55
        assert abs(level(given[500:-500]) - level(wanted[500:-500])) < 0.01


@pytest.mark.parametrize("rates", [rates[::-1] for rates in RATES])
def test_upsampling_leaves_no_images(rates):
    spectrum = np.abs(np.fft.rfft(resample(sine(1000, rates[0]), *rates) * np.blackman(rates[1])))
    assert spectrum[rates[0] // 2 + 10 :].max() < 10 ** (-95 / 20) * spectrum.max()


def test_resample_refuses_what_is_not_a_rate_or_a_wave():
    for rates in [(0, 16000), (16000, -1), (16000, 10**6)]:
        with pytest.raises(InputError, match="Hz"):
            resample(np.ones(10), *rates)
    with pytest.raises(InputError, match="one dimension"):
        resample(np.ones((10, 2)), 8000, 16000)


def test_check_wave():
    for samples in (400, 700, 1024, 5000, 16000):
        for at in (0, samples - 400):
            wave = np.zeros(samples)
            wave[at : at + 400] = 1e-3 * sine(1000, RATE)[:400]
            check_wave(wave, "a", 400)
    for wave, message in [
        (np.ones(399), "399 samples"),
        (np.array([1, np.nan] * 400), "NaN"),
        (np.array([1, np.inf] * 400), "infinite"),
        (np.zeros(400), "silent"),
        (5e-5 * sine(1000, RATE), "silent"),
    ]:
        with pytest.raises(InputError, match=f"^a .*{message}"):
            check_wave(wave, "a", 400)


@pytest.mark.parametrize("seconds", [0.025, 0.1, 0.5, 3.0])
def test_an_offset_or_hum_is_no_sound(seconds):
    for wave in (
        np.full(round(seconds * RATE), 0.05),
        *(0.3 * sine(hertz, RATE, seconds) for hertz in (1, 10, 50, 60, 7800)),
    ):
        with pytest.raises(InputError, match="silent: from 60 to 7600 Hz"):
            check_wave(wave, "a", 400)
        check_wave(wave + 0.01 * sine(500, RATE, seconds), "a", 400)
    check_wave(0.01 * sine(7800, 48000, seconds), "a", 400, sample_rate=48000, high=20000.0)


@pytest.mark.parametrize("hertz", [0, 3, 50])
def test_long_waves_are_cut_between_words_whatever_rumbles_below_them(hertz):
    time = np.arange(12 * RATE) / RATE
    wave = np.where(time % 1.4 < 1, 0.1 * np.sin(2 * np.pi * 300 * time), 0)
    wave += 0.3 * np.sin(2 * np.pi * hertz * time) * np.sin(2 * np.pi * 0.3 * time)  # swells
    cuts = [first / RATE for first, _ in at_silences(wave, RATE, 4.0)[1:]]
    assert len(cuts) >= 3 and all(cut % 1.4 > 1 for cut in cuts)


def test_long_waves_are_cut_where_they_are_quietest():
    rate, draw = 1000, np.random.default_rng(0)
    wave = draw.normal(size=20 * rate).astype(np.float32)
    for second in (2.6, 5.9, 8.5, 11.0, 13.5, 16.1, 18.2):
        wave[round((second - 0.15) * rate) : round((second + 0.15) * rate)] *= 0.01
    pieces = at_silences(wave, rate, 4.0)
    bounds = [first for first, _ in pieces] + [len(wave)]
    assert bounds == [0, *(last for _, last in pieces)] and len(pieces) > 5  # together they are the wave
    np.testing.assert_allclose(np.array(bounds[1:-1]) / rate, [2.6, 5.9, 8.5, 11.0, 13.5, 16.1], atol=0.06)
    assert at_silences(wave[: 4 * rate], rate, 4.0) == [(0, 4 * rate)]
    for size in (4001, 4100, 7999, 8001, 12345):  # nothing to prefer: no piece is too long or next to nothing
        for even in (np.zeros(size, np.float32), draw.normal(size=size).astype(np.float32)):
            sizes = [last - first for first, last in at_silences(even, rate, 4.0)]
            assert sum(sizes) == size and max(sizes) <= 4000 and min(sizes) >= 990
    with pytest.raises(InputError, match="longest is 0.1 s, expected 0.5 or more"):
        at_silences(wave, rate, 0.1)
