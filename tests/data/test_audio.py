"""Reading, resampling and checking audio."""

import struct

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from metajax.data.audio import check_wave, read_audio, resample
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


@pytest.mark.parametrize("sizes", [(2**32 - 1, 2**32 - 1), (2**31 - 1, 0x7FFFF000), (2**31 + 36, 2**31), (8, 0)])
def test_a_streamed_wav_is_read_as_far_as_it_goes(tmp_path, sizes):
    path = with_sizes(write(tmp_path / "a.wav", noise(1000)), *sizes)
    np.testing.assert_allclose(read_audio(path, RATE), noise(1000)[:, 0], atol=1e-7)


BROKEN = {
    "does not exist": lambda folder: folder / "a.wav",
    "is a folder": lambda folder: folder,
    "is empty": lambda folder: cut(write(folder / "a.wav", noise(100)), 0),
    "holds no samples": lambda folder: write(folder / "a.wav", noise(0)),
    "not an audio file": lambda folder: cut(write(folder / "a.wav", noise(100)), 20),
    "NaN or infinite": lambda folder: folder / "nan.wav",
    "promises 160000 bytes, it holds 119": lambda folder: cut(write(folder / "a.wav", noise()), 0.75),
    "promises 320096 bytes": lambda folder: cut(write(folder / "a.rf64", noise(80000, 2)), 0.75),
    "promises 160000": lambda folder: cut(write(folder / "a.wavex", noise()), -1),
    "promises 160008": lambda folder: cut(write(folder / "a.aiff", noise()), 0.75),
    "cut short .libsndfile": lambda folder: cut(write(folder / "a.flac", noise()), 0.75),
    "no end-of-stream page": lambda folder: cut(write(folder / "a.ogg", noise()), 0.75),
    "end-of-stream": lambda folder: cut(write(folder / "a.ogg", noise()), -1),
    "stream page": lambda folder: cut(path := write(folder / "a.ogg", noise()), path.read_bytes().rindex(b"OggS")),
    "cut short: its OGG": lambda folder: cut(write(folder / "a.opus", noise()), 0.75),
    "of its 80000 samples": lambda folder: cut(write(folder / "a.mp3", noise()), 0.75),
    "no Xing header": lambda folder: without_xing(write(folder / "a.mp3", noise())),
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
def test_what_is_below_95_percent_of_the_nyquist_frequency_is_kept(rates):
    from_rate, to_rate = rates
    for hertz in np.linspace(20, 0.949 * min(rates) / 2, 12):
        given, wanted = resample(sine(hertz, from_rate), *rates), sine(hertz, to_rate)
        assert len(given) == to_rate and given.dtype == np.float32
        assert level(given - wanted) < -70
        assert abs(level(given) - level(wanted)) < 0.001


@pytest.mark.parametrize("rates", [rates[::-1] for rates in RATES])
def test_upsampling_leaves_no_images(rates):
    spectrum = np.abs(np.fft.rfft(resample(sine(1000, rates[0]), *rates) * np.blackman(rates[1])))
    assert spectrum[rates[0] // 2 + 10 :].max() < 10 ** (-95 / 20) * spectrum.max()


@pytest.mark.parametrize(
    ("from_rate", "to_rate", "samples"),
    [
        (22050, 16000, 11000),
        (22050, 16000, 1),
        (22050, 16000, 300000),  # several blocks
        (48000, 16000, 300000),
        (8000, 48000, 60000),
        (1000, 1001, 100),
        (1009, 800, 5000),
    ],
)
def test_resample_is_the_convolution_of_scipy(from_rate, to_rate, samples):
    common = np.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    wave = np.random.default_rng(0).standard_normal(samples)
    time = np.arange(-300 * max(up, down), 300 * max(up, down) + 1) / max(up, down)  # in samples of the lower rate
    low_pass = 0.975 * np.sinc(0.975 * time) * np.exp(-((np.pi * time / 240) ** 2))  # transform of erfc(120 ...) / 2
    wanted = resample_poly(wave, up, down, window=low_pass / max(up, down))
    given = resample(wave, from_rate, to_rate)
    assert given.dtype == np.float32 and given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, atol=5e-6)


def test_resample_refuses_what_is_not_a_rate_or_a_wave():
    for rates in [(0, 16000), (16000, -1), (16000, 10**6)]:
        with pytest.raises(InputError, match="Hz"):
            resample(np.ones(10), *rates)
    with pytest.raises(InputError, match="one dimension"):
        resample(np.ones((10, 2)), 8000, 16000)


def test_check_wave():
    check_wave(np.full(400, 2e-4, np.float32), "a", 400)
    for wave, message in [
        (np.ones(399), "399 samples"),
        (np.array([1, np.nan] * 400), "NaN"),
        (np.array([1, np.inf] * 400), "infinite"),
        (np.zeros(400), "silent"),
        (np.full(400, 5e-5), "silent"),
    ]:
        with pytest.raises(InputError, match=f"^a .*{message}"):
            check_wave(wave, "a", 400)
