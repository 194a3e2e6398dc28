"""The console in a real browser: nothing foreign runs, it fits a phone, and it can be used by keyboard."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path

import pytest
from browser import CHROMIUM, Tab, browser
from console_house import SECRET, House, house

from stillhouse.guard.clusters import Cluster
from stillhouse.guard.events import Event
from stillhouse.guard.orders import NewOrganisation

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=\'taken\'">',
    "'-alert(1)-'",
    "</title><svg onload=document.title='taken'>",
    "{{ 7 * 7 }}${7*7}",
)
OUTSIDE = """[document.documentElement.scrollWidth, [...document.querySelectorAll("main *")].filter(each =>
  each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".scroll, svg")).length].join(" ")"""
FAINT = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(n => n / 255).map(
      c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = each => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor
      if (!/^rgba.*, 0\\)$/.test(colour)) return colour
    }
  }
  return [...document.querySelectorAll("body *")].filter(each =>
    each.checkVisibility() && [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim())
  ).map(each => {
    const own = getComputedStyle(each)
    const a = light(each.closest("svg") ? own.fill : own.color)
    const b = light(behind(each))
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), each.outerHTML.slice(0, 90)]
  }).filter(([ratio]) => ratio < 4.5).map(String)
})()"""
NAMELESS = """[...document.querySelectorAll("a, button, input:not([type=hidden]), select, textarea")].filter(
  each =>
  !(each.textContent.trim() || each.labels?.length || each.ariaLabel)).map(each => each.outerHTML)"""


def events(account: str, number: int, **given) -> list[Event]:
    now = time.time()
    told = {
        "organisation": "",
        "account": account,
        "key": "key_1",
        "model": "large",
        "upstream": "http://127.0.0.1:9/v1",
        "route": "chat/completions",
        "stream": True,
        "status": 200,
        "ended": "whole",
        "input_tokens": 900,
        "output_tokens": 300,
    }
    return [
        Event(**{"id": f"req_{time.time_ns():x}{n}", "at": now - n} | told | given) for n in range(number)
    ]


def in_a_loop(test: Callable[[Path], Coroutine[None, None, None]]) -> Callable[[Path], None]:
    @wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


async def log_in(tab: Tab, at: House, path: str = "/admin") -> None:
    at.clock += 11
    await tab.go(at.url + path)
    await tab.submits(
        "document.querySelector('#name').value = 'Grace Hopper';"
        f"document.querySelector('#secret').value = {SECRET!r};"
        "document.querySelector('form button').click()"
    )


async def until(tab: Tab, script: str, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await tab.run(script):
            return True
        await asyncio.sleep(0.1)
    return False


def populated(at: House) -> list[str]:
    """Every page, with hostile names in all that they show."""
    made = ""
    for name in HOSTILE:
        made = at.do(
            lambda register, act, name=name: register.add_organisation(act, NewOrganisation(name=name))
        ).id
        account = at.account(name, organisation=made)
        at.key(account, name=name)
        at.do(
            lambda register, act, account=account: register.set_state(act, "account", account, "blocked"),
            name,
        )
        at.put(
            *events(
                account,
                3,
                model=name,
                reason=name.replace(" ", "_"),
                ended="refused",
                status=429,
                upstream=name,
            )
        )
    cluster = Cluster(tuple(at.account(name) for name in HOSTILE * 2), "settings", 1, 0.91, 0.0004)
    at.watching.do(lambda steps: steps.found(cluster, 681, time.time()))
    (found, *_) = events(account, 1, id="req_hostile", model=HOSTILE[0])
    at.put(found)
    return [
        *("/admin", "/admin?span=day", "/admin/accounts", "/admin/accounts/new", "/admin/organisations"),
        *(
            "/admin/events",
            "/admin/events/req_hostile",
            "/admin/changes",
            "/admin/models",
            "/admin/cascades",
            "/admin/standings",
            "/admin/clusters",
            "/admin/clusters/1",
            "/admin/keys/key_none",
        ),
        *(
            f"/admin/accounts/{account}",
            f"/admin/accounts/{account}/change",
            f"/admin/standings/{account}",
            f"/admin/accounts/{account}/close",
        ),
        f"/admin/organisations/{made}",
    ]


@in_a_loop
async def test_nothing_foreign_runs_and_every_page_fits(tmp_path):
    with house(tmp_path) as at:
        pages = populated(at)
        async with browser(tmp_path) as tab:
            await log_in(tab, at)
            for path in pages:
                await tab.go(at.url + path)
                assert (
                    await tab.run(
                        "document.images.length + document.querySelectorAll('script:not([src])').length"
                    )
                    == 0
                )
                assert (await tab.run("document.title")).endswith(" · stillhouse guard"), path
                assert await tab.run(NAMELESS) == []
                for width, dark in ((1280, False), (1280, True), (360, False)):
                    await tab.look(width, dark=dark)
                    assert await tab.run(OUTSIDE) == f"{width} 0", path
                    assert await tab.run(FAINT) == [], path
            assert tab.dialogs == []
            assert [said for said in tab.complaints if "404" not in said] == []
            await tab.run(f"document.body.insertAdjacentHTML('beforeend', {HOSTILE[1]!r})")
            assert await until(tab, "document.images[0].complete")
            assert await tab.run("document.title") != "taken"
            assert any("Content Security Policy" in said for said in tab.complaints)


@in_a_loop
async def test_the_overview_follows_the_traffic_and_can_be_paused(tmp_path):
    figure = "document.querySelector('.tiles dd').textContent"
    with house(tmp_path) as at:
        account = at.account("a customer")
        async with browser(tmp_path) as tab:
            await log_in(tab, at)
            assert await tab.run(figure) == "0"
            await tab.run("window.here = true")
            at.put(*events(account, 40))
            assert await until(tab, f"{figure} === '40'")
            await tab.press("p")
            assert await tab.run("document.querySelector('.spans button').textContent") == "Go on"
            at.put(*events(account, 2))
            assert not await until(tab, f"{figure} !== '40'", 5)
            await tab.press("p")
            assert await until(tab, f"{figure} === '42'")
            assert await tab.run("window.here"), "it was never loaded anew"
            token = await tab.run("document.querySelector('[name=token]').value")
            await tab.run(
                "fetch('/admin/logout', {method: 'POST', "
                "headers: {'content-type': 'application/x-www-form-urlencoded'},"
                f" body: 'token={token}'}}).then(() => true)"
            )
            assert await until(tab, "location.pathname === '/admin/login'"), "logged out elsewhere"


@in_a_loop
async def test_it_is_used_by_keyboard(tmp_path):
    with house(tmp_path) as at:
        for name in ("first", "second", "third"):
            at.account(name)
        async with browser(tmp_path) as tab:
            await log_in(tab, at, "/admin/accounts")
            assert await tab.run("location.pathname") == "/admin/accounts"
            focused = "document.activeElement.closest('[data-row]')?.rowIndex ?? 0"
            told = []
            for key in "jjkj":
                await tab.press(key)
                told.append(await tab.run(focused))
            assert told == [1, 2, 1, 2]
            await tab.press("/")
            assert await tab.run("document.activeElement.id") == "search"
            await tab.press("?")
            assert not await tab.run("document.querySelector('#keys').open"), "typed, not ordered"
            await tab.press("Escape")
            await tab.press("?")
            assert await tab.run("document.querySelector('#keys').open")
            await tab.go(at.url + "/admin/accounts")
            assert (
                await tab.run(
                    "[document.querySelector('.skip').focus(), document.activeElement.className][1]"
                )
                == "skip"
            )


@in_a_loop
async def test_an_act_goes_through_without_a_script(tmp_path):
    with house(tmp_path) as at:
        account = at.account("to be blocked")
        async with browser(tmp_path) as tab:
            await tab.send("Emulation.setScriptExecutionDisabled", value=True)
            await log_in(tab, at, f"/admin/accounts/{account}/block")
            await tab.submits(
                "document.querySelector('#reason').value = 'asks too much';"
                "document.querySelector('form.act button.main').click()"
            )
            assert await tab.run("document.querySelector('.done').textContent") == (
                "Blocked. Its requests are refused from now on."
            )
            assert "asks too much" in await tab.run("document.querySelector('.why').textContent")
            await tab.go(at.url + "/admin")
            assert 'http-equiv="refresh"' in await tab.run("document.head.innerHTML")
