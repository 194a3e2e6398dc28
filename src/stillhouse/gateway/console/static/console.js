"use strict"

// What is live is fetched every two seconds, one request at a time, and not at all while nobody looks.
const live = document.getElementById("live")
const EVERY = 2000
const LONGEST = 30000
let paused = false
let wait = EVERY

const button = document.createElement("button")

async function refresh() {
  if (paused || document.hidden) return later()
  try {
    const answer = await fetch(live.dataset.url, { cache: "no-store", credentials: "same-origin" })
    if (answer.status === 401) return location.reload()
    if (!answer.ok) throw new Error(answer.status)
    const text = await answer.text()
    // Nothing moves under a reader's pointer or focus.
    if (!paused && !live.contains(document.activeElement)) {
      const page = new DOMParser().parseFromString(text, "text/html")
      live.replaceChildren(...page.body.childNodes)
      live.querySelector(".spans").append(button)
    }
    wait = EVERY
    live.classList.remove("stale")
  } catch {
    wait = Math.min(LONGEST, wait * 2)
    live.classList.add("stale")
  }
  later()
}

function later() {
  setTimeout(refresh, wait)
}

function pause() {
  paused = !paused
  button.textContent = paused ? "Go on" : "Pause"
  button.setAttribute("aria-pressed", String(paused))
}

if (live) {
  button.type = "button"
  button.className = "quiet"
  button.textContent = "Pause"
  button.setAttribute("aria-pressed", "false")
  button.addEventListener("click", () => { pause(); button.blur() })
  live.querySelector(".spans").append(button)
  later()
}

const keys = document.getElementById("keys")
const help = document.querySelector(".keys-button")
if (keys && help) {
  help.hidden = false
  help.addEventListener("click", () => keys.showModal())
}

document.querySelector("[data-select]")?.addEventListener("focus", event => event.target.select())

const PAGES = { o: "/admin", a: "/admin/accounts", e: "/admin/events", c: "/admin/changes", m: "/admin/models", s: "/admin/standings" }
let going = false

function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")]
  const at = rows.findIndex(row => row.contains(document.activeElement))
  const row = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step]
  if (!row) return
  const target = row.querySelector("a") ?? row
  if (target === row) row.tabIndex = -1
  target.focus()
}

document.addEventListener("keydown", event => {
  if (!keys || event.ctrlKey || event.metaKey || event.altKey || keys.open) return
  if (event.target.closest("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur()
    return
  }
  if (going && PAGES[event.key]) {
    location.assign(PAGES[event.key])
    return
  }
  going = event.key === "g"
  if (event.key === "/") {
    const search = document.querySelector("input[type=search]")
    if (!search) return
    search.focus()
    search.select()
  } else if (event.key === "j") move(1)
  else if (event.key === "k") move(-1)
  else if (event.key === "?") keys.showModal()
  else if (event.key === "p" && live) pause()
  else if (event.key === "Escape") document.activeElement?.blur()
  else return
  event.preventDefault()
})
