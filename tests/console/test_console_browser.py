"""The console in real headless Chromium, before a real front with real stores."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from console_site import Operator, Site, until
from playwright.sync_api import Page, expect

from chromium import DESKTOP, PHONE, Tab

OpenTab = Callable[..., Tab]
XSS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% raw %}",
    "javascript:alert(1)",
    "</pre></dd><svg onload=alert(1)>",
]


def decide(page: Page, button: str, reason: str) -> None:
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name=button, exact=True).click()


def test_approved_with_a_reason(site: Site, open_tab: OpenTab) -> None:
    held = site.hold(to="boss@example.org", text="hi")
    tab = open_tab(site, "approver")
    page = tab.open("/approvals")
    page.get_by_role("link", name=f"Decide {held.id}").click()
    expect(page.locator(".diff")).to_contain_text('"to": "boss@example.org"')
    decide(page, "Approve once", "known recipient, für heute")
    expect(page.get_by_role("status")).to_have_text(f"{held.id} is approved.")
    expect(page.locator("[data-state]")).to_contain_text("known recipient, für heute")
    expect(page.locator("[data-state]")).to_contain_text(site.id["approver"])
    expect(page.get_by_role("button", name="Approve once")).to_be_disabled()
    assert site.state(held) == "approved"
    (step,) = [s for s in site.audit("approval") if s["id"] == held.id and s["by"]]
    assert (step["action"], step["by"]) == ("approved", site.id["approver"])
    # Second thoughts, as long as it was not used.
    decide(page, "Deny", "second thoughts")
    expect(page.get_by_role("status")).to_have_text(f"{held.id} is denied.")
    assert site.state(held) == "denied"
    assert tab.refused == []


def test_denied_and_nothing_without_a_reason(site: Site, open_tab: OpenTab) -> None:
    held = site.hold(to="x@evil.test")
    page = open_tab(site, "approver").open(f"/approvals/{held.id}")
    page.get_by_role("button", name="Deny").click()  # the field is required
    assert page.url.endswith(held.id)
    assert site.state(held) == "pending"
    decide(page, "Deny", "nobody knows them")
    expect(page.locator(".tag.denied")).to_be_visible()
    assert site.state(held) == "denied"


def test_what_changed_since_the_last_call_that_was_let_out(site: Site, open_tab: OpenTab) -> None:
    first = site.hold("pay", amount=10, to="DE1")
    site.decide(first, approve=True)
    second = site.hold("pay", amount=900, to="DE1")
    page = open_tab(site, "approver").open(f"/approvals/{second.id}")
    lines = page.locator(".line").all_inner_texts()
    assert [re.sub(r"\s+", " ", line).strip() for line in lines] == [
        "{", '- "amount": 10,', '+ "amount": 900,', '"to": "DE1"', "}",
    ]  # fmt: skip
    other = site.hold("pay", by="both", amount=900, to="DE1")  # another caller's are no measure
    page.goto(f"{site.url}/approvals/{other.id}")
    expect(page.locator(".line.new")).to_have_count(4)
    assert page.locator(".line.gone").count() == 0


def test_it_expires_while_it_is_open(make_site: Callable[..., Site], open_tab: OpenTab) -> None:
    site = make_site(tools={"store": "memory", "approval_s": 5})
    tab = open_tab(site, "approver")
    held = site.hold(to="boss@example.org")
    page = tab.open(f"/approvals/{held.id}")
    approve = page.get_by_role("button", name="Approve once")
    expect(approve).to_be_enabled()
    page.get_by_label("Reason").fill("I was just about to")
    expect(approve).to_be_disabled(timeout=20_000)
    expect(page.locator(".tag.expired")).to_be_visible()
    assert page.get_by_label("Reason").input_value() == "I was just about to"
    late = Operator(site, "approver").decide(held, "approve")
    assert late.status_code == 409
    assert "it is expired already" in late.text
    assert site.state(held) == "expired"


def test_two_approvers_with_the_same_page_open(site: Site, open_tab: OpenTab) -> None:
    held = site.hold(to="boss@example.org")
    pages = [open_tab(site, name).open(f"/approvals/{held.id}") for name in ("approver", "second")]
    pages[1].get_by_label("Keep up to date").uncheck()  # its buttons stay as they were
    decide(pages[0], "Approve once", "I was first")
    expect(pages[0].get_by_role("status")).to_be_visible()
    decide(pages[1], "Approve once", "I was second")
    expect(pages[1].get_by_role("alert").first).to_contain_text("it is approved already")
    expect(pages[1].locator("[data-state]")).to_contain_text("I was first")
    assert site.front.tool_gate.approvals.get(held.id).by == site.id["approver"]


def test_the_other_page_learns_of_it(site: Site, open_tab: OpenTab) -> None:
    held = site.hold(to="boss@example.org")
    page = open_tab(site, "approver").open(f"/approvals/{held.id}")
    expect(page.locator(".tag.pending")).to_be_visible()
    site.decide(held, approve=False)
    expect(page.locator(".tag.denied")).to_be_visible()
    for name in ("Approve once", "Deny"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()


def test_who_asked_can_not_approve_in_the_console_either(site: Site, open_tab: OpenTab) -> None:
    held = site.hold(by="both", to="boss@example.org")
    page = open_tab(site, "both").open(f"/approvals/{held.id}")
    expect(page.get_by_text("can't approve it, only take it back")).to_be_visible()
    expect(page.get_by_role("button", name="Approve once")).to_be_disabled()
    refused = Operator(site, "both").decide(held, "approve")
    assert refused.status_code == 409
    assert "another credential" in refused.text
    assert site.state(held) == "pending"


def test_texts_of_models_and_callers_do_nothing(
    make_site: Callable[..., Site], open_tab: OpenTab
) -> None:
    """Stored XSS by tool names, arguments, reasons, requests' fields and kept texts."""
    site = make_site(console={"excerpt_chars": 500})
    ids = []
    for bad in XSS:
        held = site.hold(tool=bad, **{bad: bad, "long": bad * 400, "bidi": "\u202e\u2066"})
        ids.append(held.id)
        site.front.audit.refused(request_id=bad, code=bad, route=bad)
        excerpt = site.front.excerpts.of([_said(bad)])
        site.ask(reason=bad, route=bad, principal=bad, excerpt=excerpt)
    site.front.ledger.ban(site.id["caller"], by=XSS[0], reason=XSS[1])
    tab = open_tab(site, "operator")
    paths = ["/decisions", "/approvals", "/approvals?state=all", "/users", "/policy", "/health",
             f"/users/{site.id['caller']}", *(f"/approvals/{i}" for i in ids)]  # fmt: skip
    for path in paths:
        page = tab.open(path)
        made = "script:not([src]), [onerror], [onload], svg[onload], a[href^='javascript' i]"
        assert page.locator(made).count() == 0, path
        assert page.locator("img").count() == 1  # our own
        for size in (PHONE, DESKTOP):  # nothing pushes the buttons out of sight
            page.set_viewport_size(size)  # type: ignore[arg-type]
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= size["width"], path
    page = tab.open(f"/approvals/{ids[0]}")
    shown = page.locator(".diff").inner_text()
    assert shown.count("<script>alert(1)</script>") == 402  # nothing is left out
    assert "\\u202e\\u2066" in shown
    assert "\u202e" not in page.content()
    page = tab.open("/decisions")
    kept = page.locator("details", has=page.locator(".excerpt")).first
    kept.locator("summary").click()
    expect(page.locator(".excerpt").first).to_be_visible()
    assert tab.dialogs == []
    assert tab.refused == []


def _said(text: str) -> Any:
    from vauban.types import Origin, Segment

    return Segment(text, Origin.USER)


def test_the_policy_forbids_scripts_that_got_in_all_the_same(site: Site, open_tab: OpenTab) -> None:
    """The second line of defence, tried in the browser itself."""
    tab = open_tab(site, "reader")
    page = tab.open("/decisions")
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          try { script.textContent = "window.ran = 1"; } catch { window.typed = 1; }
          document.body.append(script);
          const other = document.createElement("script");
          try { other.src = "http://127.0.0.1:9/x.js"; document.body.append(other); } catch {}
          try { document.body.innerHTML = "<b>x</b>"; } catch { window.typed = 1; }
          const image = document.createElement("img");
          image.src = "http://127.0.0.1:9/leak?all";
          document.body.append(image);
        }"""
    )
    expect(page.get_by_role("heading", name="Decisions")).to_be_visible()
    until(lambda: any("img-src" in text for text in tab.refused))
    assert page.evaluate("window.ran") is None
    assert page.evaluate("window.typed") == 1
    assert "vauban" not in str(page.evaluate("document.cookie"))  # HttpOnly


def test_by_keyboard_alone(site: Site, open_tab: OpenTab) -> None:
    held = site.hold(to="boss@example.org")
    tab = open_tab(site)
    page = tab.open("/login")
    keyboard = page.keyboard
    keyboard.type(site.keys["approver"])  # the field has the focus
    keyboard.press("Enter")
    page.wait_for_url("**/decisions")

    def go_to(locator: Any) -> None:
        for _ in range(60):
            if locator.evaluate("e => e === document.activeElement"):
                break
            keyboard.press("Tab")
        expect(locator).to_be_focused()
        outline = locator.evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline != "none"

    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    go_to(page.get_by_role("link", name="Approvals"))
    keyboard.press("Enter")
    page.wait_for_url("**/approvals")
    go_to(page.get_by_role("link", name=f"Decide {held.id}"))
    page.wait_for_timeout(1_500)  # the list is asked for again meanwhile, and keeps the focus
    expect(page.get_by_role("link", name=f"Decide {held.id}")).to_be_focused()
    keyboard.press("Enter")
    page.wait_for_url(f"**/{held.id}")
    go_to(page.get_by_label("Reason"))
    keyboard.type("by hand")
    go_to(page.get_by_role("button", name="Approve once"))
    keyboard.press("Space")
    expect(page.get_by_role("status")).to_have_text(f"{held.id} is approved.")
    go_to(page.get_by_role("button", name="Sign out"))
    keyboard.press("Enter")
    page.wait_for_url("**/login")
    assert site.state(held) == "approved"


def test_a_user_is_looked_at_degraded_banned_and_forgiven(site: Site, open_tab: OpenTab) -> None:
    site.watch("caller", [n / 100 for n in range(40)])
    tab = open_tab(site, "operator", PHONE)
    page = tab.open("/users")
    page.get_by_role("link", name=site.id["caller"]).first.click()
    expect(page.get_by_role("img", name=re.compile("Score: now 0.390.*40 queries"))).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Map of"))).to_be_visible()
    assert page.locator("path.cells").get_attribute("d").count("M") == 512
    assert sum(p.get_attribute("d").count("M") for p in page.locator("path.asked").all()) == 40
    for button, level in (("Degrade", "degraded"), ("Hold", "held"), ("Ban", "banned")):
        page.get_by_label("For").select_option("24")
        decide(page, button, f"as {level}")
        expect(page.get_by_role("status")).to_have_text(f"{site.id['caller']} is {level} now.")
        standing = site.front.ledger.remembered(site.id["caller"])
        assert standing.level.name.lower() == level
        assert standing.by == site.id["operator"]
        assert standing.until == pytest.approx(standing.since + 86_400)
    decide(page, "Unban and forgive", "talked to them")
    expect(page.locator(".tag.clear")).to_be_visible()
    expect(page.get_by_text("No query of this user is kept.").first).to_be_visible()
    page.goto(f"{site.url}/users/{site.id['operator']}")
    decide(page, "Ban", "oops")
    expect(page.get_by_role("alert").first).to_contain_text("your own credential")
    assert tab.refused == []


def test_decisions_appear_by_themselves_and_are_filtered(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site, "reader")
    page = tab.page
    user = "anon:192.0.2.7"
    site.ask(user, action="block", reason="prompt_injection", score=0.987)
    row = page.locator("tr", has_text=user)
    expect(row).to_contain_text("0.987")
    page.get_by_label("Action").select_option("block")
    page.get_by_role("button", name="Filter").click()
    expect(row).to_have_count(1)
    site.ask(user, action="allow")
    page.get_by_label("Caller").fill(user)
    page.get_by_label("Action").select_option("")
    page.get_by_role("button", name="Filter").click()
    expect(row).to_have_count(2)
    # What this key does not open is not offered.
    assert page.get_by_role("navigation").first.inner_text().split() == [
        "Decisions", "Policy", "Health",
    ]  # fmt: skip


def test_the_server_goes_and_comes_back(make_site: Callable[..., Site], open_tab: OpenTab) -> None:
    site = make_site()
    tab = open_tab(site, "operator")
    page = tab.open("/health")
    expect(page.get_by_text("answers in")).to_be_visible()
    site.guarded.stop()
    expect(page.get_by_role("alert")).to_contain_text("Not up to date: The guarded server does not")
    assert page.locator("#live.old").count() == 1
    page.goto(f"{site.url}/approvals")
    expect(page.get_by_role("alert")).to_contain_text("The guarded server does not answer")
    site.guarded.start()
    page.get_by_role("link", name="Try again").click()
    expect(page.get_by_role("heading", name="Approvals")).to_be_visible()
    site.guarded.front.tool_gate.approvals._store.close()


def test_signed_out_while_a_page_is_open(make_site: Callable[..., Site], open_tab: OpenTab) -> None:
    site = make_site(console={"idle_s": 60})
    page = open_tab(site, "reader").page
    site.offset_s = 61.0  # nobody did anything; the page's own questions don't count
    page.wait_for_url("**/login")
