"""The page on which words are taught: what the server gives and refuses, and the page itself in a browser."""

import base64
import re
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import soundfile

from metajax import InputError, web

RATE = 16000
pytest.importorskip("starlette", reason="starlette is of the extra web")


def tone(hertz, rate=RATE, seconds=0.6):
    """In the middle of 1.5 s."""
    wave = 0.001 * np.random.default_rng(hertz).normal(size=int(1.5 * rate))
    size = int(seconds * rate)
    start = (len(wave) - size) // 2
    wave[start : start + size] += 0.3 * np.sin(2 * np.pi * hertz * np.arange(size) / rate)
    return wave.astype(np.float32)


def sent(wave, rate=RATE):
    return {"wave": base64.b64encode((32767 * wave).astype("<i2").tobytes()).decode(), "rate": rate}


def pitch(wave):
    return float(np.abs(np.fft.rfft(wave)).argmax() * RATE / len(wave))


def teach(clips):
    """A word is its pitch."""
    for _, name, wave in clips:
        if np.abs(wave).max() < 0.01:
            raise InputError(f"{name} is silent.")
    words = list(dict.fromkeys(word for word, _, _ in clips))
    pitches = [np.mean([pitch(wave) for other, _, wave in clips if other == word]) for word in words]
    return pitches, [i for i, (_, _, wave) in enumerate(clips) if pitch(wave) > 3000]


def hear(pitches, wave):
    near = np.exp(-np.abs(np.array(pitches) - pitch(wave)) / 50)
    return near * (np.abs(wave).max() > 0.05) / max(near.sum(), 1)


@pytest.fixture(scope="module")
def client():
    from starlette.testclient import TestClient

    return TestClient(web.app(teach, hear, RATE, largest=200_000))


def test_words_are_taught_and_heard_at_any_rate(client):
    clips = [("low", 400), ("high", 1200), (" low ", 420)]  # spaces do not count
    taught = client.post("/teach", json={"clips": [{"word": word, **sent(tone(hz))} for word, hz in clips]}).json()
    assert taught["words"] == ["low", "high"] and taught["faint"] == [] and taught["ms"] >= 0
    for hertz, expected in ((410, [1, 0]), (1200, [0, 1]), (2500, [0, 0])):
        # heard at another rate
        found = client.post("/hear", json={"taught": taught["taught"], **sent(tone(hertz, 24000), 24000)}).json()
        np.testing.assert_allclose(found["p"], expected, atol=0.2)
    clips = [{"word": "top", **sent(tone(hertz))} for hertz in (900, 3500)]
    told = client.post("/teach", json={"clips": clips}).json()
    assert told["faint"] == [1] and told["taught"] != taught["taught"]
    # the first is not forgotten
    assert client.post("/hear", json={"taught": taught["taught"], **sent(tone(400))}).status_code == 200


def test_what_was_taught_long_ago_is_forgotten(client):
    taught = [client.post("/teach", json={"clips": [{"word": "a", **sent(tone(400))}]}).json() for _ in range(17)]
    codes = [client.post("/hear", json={"taught": taught[i]["taught"], **sent(tone(400))}).status_code for i in (0, 1)]
    assert codes == [400, 200]


def test_what_is_no_recording_is_refused_in_a_sentence(client):
    good = {"word": "a", **sent(tone(400))}
    for path, asked, code, told in (
        ("/teach", {"clips": []}, 400, "holds no clips"),
        ("/teach", {"clips": [3]}, 400, "holds no clips"),
        ("/teach", ["a"], 400, "no request of the page"),
        ("/teach", {"clips": [sent(tone(400))]}, 400, "has no word"),
        ("/teach", {"clips": [good, {"word": "a", "wave": ""}]}, 400, "clip 2 of 'a' holds no audio"),
        ("/teach", {"clips": [{"word": "a", "wave": "<html>"}]}, 400, "holds no audio"),
        ("/teach", {"clips": [{"word": "a", "wave": 7}]}, 400, "holds no audio"),
        ("/teach", {"clips": [good | {"rate": "fast"}]}, 400, "holds no audio"),
        (
            "/teach",
            {"clips": [good | {"rate": 1}]},
            400,
            "holds no audio, expected 16-bit samples in base64, and their",
        ),
        ("/teach", {"clips": [{"word": "a", **sent(np.zeros(RATE))}]}, 400, "clip 1 of 'a' is silent"),
        ("/teach", {"clips": [good] * 5}, 413, "expected at most 200000"),
        ("/hear", good, 400, "does not know these words"),
        ("/hear", {"taught": [], **good}, 400, "does not know these words"),
    ):
        answer = client.post(path, json=asked)
        assert answer.status_code == code and told in answer.json()["error"], (asked, answer.text)
        assert answer.json()["error"].endswith(".")
    for content in (b"\xff\x00", b"[" * 90_000):
        assert "no request of the page" in client.post("/teach", content=content).json()["error"]
    assert client.post("/teach", content=iter([b"{}"])).status_code == 413  # of untold length


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(client):
    page = client.get("/").text
    assert page.startswith("<!doctype html>") and not re.search(r"[\"'(](https?:)?//", page)
    assert len([line for line in page.splitlines() if line.strip()]) <= 400
    texts = page[page.index("const TEXTS") : page.index("\n};")]
    tables = [re.findall(r"[,{\n] *(\w+): [\"`(]", part) for part in re.split(r"\n  (?:en|zh): \{", texts)[1:]]
    assert len(tables) == 2 and sorted(tables[0]) == sorted(tables[1]) and len(tables[0]) > 30
    used = set(re.findall(r"data-text=\"(\w+)\"|\btext\(\"(\w+)\"|Told\(\"(\w+)\"", page))
    assert {name for names in used for name in names if name} <= set(tables[0])


def test_a_port_in_use_is_refused_in_a_sentence():
    pytest.importorskip("uvicorn", reason="uvicorn is of the extra web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127.0.0.1 cannot be opened \(Address already in use\)"):
            web.serve(None, "127.0.0.1", port)
    with pytest.raises(InputError, match="port 70000 of 127.0.0.1 cannot be opened"):
        web.serve(None, "127.0.0.1", 70000)


@pytest.fixture(scope="module")
def served():
    """The page's address."""
    pytest.importorskip("uvicorn", reason="uvicorn is of the extra web")
    found = []
    ready = {"ready": found.append}
    threading.Thread(
        target=web.serve, args=(web.app(teach, hear, RATE), "127.0.0.1", 0), kwargs=ready, daemon=True
    ).start()
    while not found:
        time.sleep(0.01)
    return found[0]


@pytest.fixture
def browser(tmp_path):
    """`open(*flags)` gives a headless Chromium, whose microphone is the file `mic.wav`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not path:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={tmp_path / 'mic.wav'}"]

        def launch(*flags):
            return driver.chromium.launch(executable_path=path, args=["--no-sandbox", *fake, *flags])

        yield launch


def say(folder, hertz):
    """From now on the microphone, once it is opened, hears this again and again."""
    soundfile.write(folder / "mic.wav", tone(hertz, 48000), 48000)


@pytest.mark.slow
def test_three_words_are_taught_and_one_is_heard_in_a_browser(served, browser, tmp_path):
    from playwright.sync_api import expect

    opened = browser("--use-fake-ui-for-media-stream")
    page = opened.new_page(locale="en-GB", color_scheme="light", viewport={"width": 1200, "height": 850})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    own = (served, "blob:", "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    page.goto(served)
    expect(page.get_by_role("button", name="Listen")).to_be_disabled()
    for i, (word, hertz) in enumerate((("low", 400), ("mid", 900), ("high", 1700))):
        say(tmp_path, hertz)
        page.get_by_label("Word", exact=True).fill(word)
        page.keyboard.press("Enter")  # without a mouse
        expect(page.get_by_role("status")).to_contain_text(f"Words: {i + 1}, taught by clips: {i + 1}, in ")
    say(tmp_path, 410)
    page.get_by_role("button", name="Record again: “low”").click()
    expect(page.get_by_role("img", name="Spectrogram of clip 2 of “low”, 1.5 s")).to_be_visible()
    expect(page.get_by_role("img")).to_have_count(4)
    page.screenshot(path=tmp_path / "taught.png")
    page.get_by_role("button", name="Delete: clip 2 of “low”").click()
    expect(page.get_by_role("img")).to_have_count(3)
    expect(page.get_by_role("button", name="Record again: “low”")).to_be_focused()
    say(tmp_path, 900)
    page.get_by_role("button", name="Listen").click()
    expect(page.locator("#heard")).to_have_text("mid")
    expect(page.get_by_role("list", name="Heard").get_by_role("listitem").first).to_contain_text("mid")
    expect(page.locator("#time")).to_contain_text(re.compile(r"\d+ % · [\d.]+ ms"))
    expect(page.locator("#bars li")).to_have_count(3)
    page.screenshot(path=tmp_path / "heard.png")
    page.get_by_role("button", name="Stop listening").click()
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_role("heading", name="教它一个词")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=tmp_path / "zh.png")
    say(tmp_path, 0)  # no sound but a little noise
    page.get_by_role("button", name="再录一次：“low”").click()
    expect(page.get_by_role("alert")).to_contain_text("silent")
    expect(page.get_by_role("img")).to_have_count(3)
    assert not wrong
    opened.close()


@pytest.mark.slow
def test_no_microphone_is_one_sentence_on_the_page(served, browser, tmp_path):
    from playwright.sync_api import expect

    say(tmp_path, 400)
    opened = browser()
    page = opened.new_context(locale="en").new_page()  # with the right to use it never given
    page.goto(served)
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert")).to_have_text("Write the word first, then record it.")
    page.get_by_label("Word", exact=True).fill("low")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("The microphone is not permitted")
    page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("none", "NotFoundError"); };
    }""")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("There is no microphone")
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_role("alert")).to_contain_text("没有找到麦克风")
    expect(page.get_by_role("img")).to_have_count(0)
    opened.close()
