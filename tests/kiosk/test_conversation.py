"""What a visitor does, in a real browser: each whole, to what is seen on the screen."""

from __future__ import annotations

import shutil

import pytest

pytestmark = pytest.mark.browser


# A stand-in for a computer's own voice: Chromium has none that comes to an end where there is no sound card.
SYNTHESIS = """
window.spoken = [];
window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
Object.defineProperty(window, "speechSynthesis", {value: {
  getVoices: () => [{lang: "de-DE", localService: true}, {lang: "en-GB", localService: true}],
  speak(speech) {
    spoken.push([speech.text, speech.voice.lang]);
    this.timer = setTimeout(() => speech.onend(), 300);
  },
  cancel() { clearTimeout(this.timer); },
}});
"""


def begun(page):
    page.locator("#begin").click()
    page.locator("#mic").wait_for()
    return page


def test_a_spoken_question_is_answered_by_the_built_in_model(chromium, daemon, spoken, expect, state):
    file, seconds = spoken
    page = begun(chromium(daemon.url, audio=file))
    mic = page.locator("#mic")
    mic.hover()
    page.mouse.down()  # held, as a person does
    state(page, "listening", "hearing")
    page.wait_for_timeout(1000 * seconds + 500)  # as long as the person speaks
    page.mouse.up()
    expect(page.locator(".said")).to_contain_text("zoo", ignore_case=True)
    expect(page.locator(".answer")).to_have_text("The zoo closes at 6 pm.")
    state(page, "idle")


def test_hands_free_a_pause_ends_the_question(chromium, daemon, spoken, expect, state):
    page = begun(chromium(daemon.url, audio=spoken[0]))
    page.locator("#free").click()
    expect(page.locator(".answer")).to_have_text("The zoo closes at 6 pm.")
    state(page, "listening")


def test_a_picture_goes_with_the_question(chromium, daemon, sign, expect):
    page = begun(chromium(daemon.url, video=sign))
    page.locator("#camera").click()
    page.locator("#snap").click()
    expect(page.locator("#picture")).to_be_visible()
    page.locator("#write").click()
    page.locator("#text").fill("Read the sign.")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("FLOOR 17")
    expect(page.locator(".said img")).to_be_visible()
    expect(page.locator("#picture")).to_be_hidden()


def test_a_suggestion_is_asked_by_a_touch(chromium, box, expect):
    page = begun(chromium(box(suggestions=("How old is it?",)).url))
    page.locator("#suggestions button").click()
    expect(page.locator(".said")).to_have_text("How old is it?")
    expect(page.locator(".answer")).to_have_text("How old is it?")  # the fake says what it hears


def test_speech_interrupts_an_answer(chromium, box, spoken, expect, state):
    made = box()
    page = begun(chromium(made.url, audio=spoken[0]))
    made.model.gate.clear()  # an answer that takes its time
    page.locator("#write").click()
    page.locator("#text").fill("tell me everything")
    page.keyboard.press("Enter")
    state(page, "thinking", "answering")
    assert made.model.begun.wait(10)
    # She speaks; the file begins when the microphone does.
    page.evaluate("document.querySelector('#free').click()")
    state(page, "hearing")
    made.model.gate.set()
    expect(page.locator(".said").last).to_have_text("hello")
    expect(page.locator(".answer").last).to_have_text("hello")
    assert "everything" not in page.locator(".answer").first.inner_text()


def test_a_tap_interrupts_an_answer(chromium, box, expect, state):
    made = box()
    made.model.gate.clear()
    page = begun(chromium(made.url))
    page.locator("#write").click()
    page.locator("#text").fill("tell me everything")
    page.keyboard.press("Enter")
    state(page, "thinking", "answering")
    page.locator("#mic").click()
    state(page, "idle")
    expect(page.locator(".turn")).to_have_count(0)


def test_the_keyboard_does_it_all(chromium, box, spoken, expect, state):
    page = chromium(box().url, audio=spoken[0])
    expect(page.locator("#begin")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#mic")).to_be_focused()
    page.keyboard.press("Enter")
    state(page, "listening", "hearing")
    page.wait_for_timeout(700)  # something is said
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("hello")


def test_the_space_bar_is_the_button(chromium, box, spoken, expect, state):
    page = begun(chromium(box().url, audio=spoken[0]))
    page.keyboard.down(" ")
    state(page, "listening", "hearing")
    page.wait_for_timeout(700)  # something is said
    page.keyboard.up(" ")
    expect(page.locator(".answer")).to_have_text("hello")


def test_a_question_that_is_too_long_ends_with_a_warning(chromium, box, spoken, expect, state):
    page = begun(chromium(box(audio_s=4).url, audio=spoken[0]))
    page.locator("#mic").click()
    state(page, "listening", "hearing")
    expect(page.locator("#status")).to_have_text("Listening. 4 seconds are left")
    expect(page.locator("#left")).to_have_text("2")  # it counts
    expect(page.locator(".answer")).to_have_text("hello")
    expect(page.locator("#notice")).to_contain_text("I can listen for 4 seconds at a time")
    expect(page.locator("#left")).to_be_hidden()


def test_without_leave_for_the_microphone_one_can_write(chromium, box, expect):
    page = begun(chromium(box().url, allowed=False))
    page.locator("#mic").click()
    expect(page.locator("#notice")).to_contain_text("microphone cannot be used")
    page.locator("#text").fill("hi")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("hi")
    expect(page.locator("#notice")).to_be_hidden()
    page.locator("#camera").click()
    expect(page.locator("#notice")).to_contain_text("camera cannot be used")


def test_a_full_house_is_waited_for(chromium, box, expect):
    made = box(http={"voices": 1})
    first = chromium(made.url)
    expect(first.locator("#begin")).to_be_visible()
    expect(first.locator("#away")).to_be_hidden()
    second = chromium(made.url)
    expect(second.locator("#away-title")).to_have_text("Many people are asking")
    first.close()
    expect(second.locator("#away")).to_be_hidden()


def test_start_over_forgets_at_once(chromium, box, expect):
    made = box(suggestions=("a secret",))
    page = begun(chromium(made.url))
    page.locator("#suggestions button").click()
    expect(page.locator(".answer")).to_have_text("a secret")
    page.locator("#over").click()
    expect(page.locator("#attract")).to_be_visible()
    assert "a secret" not in page.locator("#talk").inner_html()


def test_speech_ends_the_reading_aloud(chromium, box, spoken, expect, state):
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    made = box(voice=True, suggestions=(" ".join(["on and on"] * 60) + ".",))
    page = begun(chromium(made.url, audio=spoken[0]))
    page.locator("#suggestions button").click()
    state(page, "speaking")
    page.locator("#free").click()
    state(page, "hearing")
    expect(page.locator(".said").last).to_have_text("hello")


def test_an_answer_is_read_aloud_by_the_box(chromium, box, expect, state):
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    page = begun(chromium(box(voice=True, suggestions=("one two three four five six seven eight nine ten",)).url))
    with page.expect_response("**/kiosk/speech") as heard:
        page.locator("#suggestions button").click()
    assert heard.value.body()[:4] == b"RIFF"
    state(page, "speaking")
    state(page, "idle")


def test_where_the_box_has_no_voice_the_computer_reads_aloud(chromium, box, expect, state):
    page = chromium(box(suggestions=("one two. three four.",)).url)
    page.add_init_script(SYNTHESIS)
    page.reload()
    begun(page)
    page.locator("#suggestions button").click()
    state(page, "speaking")
    state(page, "idle")
    said = [["one two.", "en-GB"], ["three four.", "en-GB"]]
    assert page.evaluate("spoken") == said
    page.locator("#aloud").click()
    page.locator("#write").click()
    page.locator("#text").fill("five six.")
    page.keyboard.press("Enter")
    expect(page.locator(".answer").last).to_have_text("five six.")
    state(page, "idle")
    assert page.evaluate("spoken") == said


def test_the_server_is_killed_and_comes_back(chromium, own_daemon, expect):
    page = begun(chromium(own_daemon.url))
    own_daemon.kill()
    expect(page.locator("#away")).to_be_visible()
    own_daemon.start()
    expect(page.locator("#away")).to_be_hidden(timeout=30_000)
    page.locator("#write").click()
    page.locator("#text").fill("When does the zoo open?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_have_text("The zoo opens at 9 am.")


def test_it_waits_for_the_model(chromium, box, expect):
    made = box(loaded=False)
    page = chromium(made.url)
    expect(page.locator("#away-title")).to_have_text("Waking up")
    made.load()
    expect(page.locator("#away")).to_be_hidden()


def test_nothing_is_left_when_nobody_is_there(chromium, box, expect):
    made = box(idle_s=30, suggestions=("a secret",))
    page = chromium(made.url)
    page.clock.install()
    page.reload()
    begun(page)
    page.locator("#suggestions button").click()
    expect(page.locator(".answer")).to_have_text("a secret")
    page.clock.fast_forward(31_000)
    expect(page.locator("#still")).to_be_visible()
    page.locator("#stay").click()
    expect(page.locator("#still")).to_be_hidden()
    expect(page.locator(".answer")).to_have_text("a secret")
    page.clock.fast_forward(31_000)
    expect(page.locator("#still")).to_be_visible()
    page.clock.fast_forward(21_000)
    expect(page.locator("#attract")).to_be_visible()
    assert "a secret" not in page.locator("#talk").inner_html()
    stored = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie.length]")
    assert stored == [0, 0, 0]
    assert page.evaluate("navigator.serviceWorker.getRegistrations().then((all) => all.length)") == 0
    # The box has forgotten it, too: the next question comes without what was said before.
    begun(page)
    page.locator("#suggestions button").click()
    expect(page.locator(".answer")).to_have_text("a secret")
    assert len(made.model.calls[-1][0]) == 1


def test_a_token_is_asked_for(chromium, box, expect, tmp_path):
    token = tmp_path / "token"
    token.write_text("sixteen characters and more\n".replace(" ", "-"))
    made = box(http={"token_file": token}, suggestions=("hi",))
    page = chromium(made.url)
    page.locator("#key-text").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_visible()
    page.locator("#key-text").fill("sixteen-characters-and-more")
    page.keyboard.press("Enter")
    expect(page.locator("#key")).to_be_hidden()
    begun(page)
    page.locator("#suggestions button").click()
    expect(page.locator(".answer")).to_have_text("hi")


@pytest.mark.parametrize(
    ("language", "title"), [("de", "Fragen Sie mich"), ("fr", "Posez-moi"), ("es", "Pregúnteme"), ("zh", "问我吧")]
)
def test_it_speaks_the_visitors_language(chromium, box, expect, language, title):
    page = chromium(box().url)
    page.locator(f"#attract-languages [lang={language}]").click()
    expect(page.locator("#title")).to_contain_text(title)
    expect(page.locator("html")).to_have_attribute("lang", language)


def test_the_owners_words(chromium, box, expect):
    strings = {
        "de": {"title": "Stadtzoo"},
        "it": {"name": "Italiano", "title": "Zoo di città", "suggestions": ["A che ora?"]},
    }
    page = begun(chromium(box(title="City Zoo", greeting="Hello!", languages=("en", "de", "it"), strings=strings).url))
    expect(page.locator("#title")).to_have_text("City Zoo")
    expect(page.locator("#greeting")).to_have_text("Hello!")
    page.locator("#language").select_option("de")
    expect(page.locator("#title")).to_have_text("Stadtzoo")
    page.locator("#language").select_option("it")
    expect(page.locator("#suggestions button")).to_have_text("A che ora?")
