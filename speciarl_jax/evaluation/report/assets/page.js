"use strict";
// The browser of images and the samples of training. All text goes in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 24;
  const $ = (id) => document.getElementById(id);

  /** An element with attributes and children; strings become text. */
  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  const look = (category) => data.categories[category] || data.categories.unverified;

  function chip(category) {
    const node = make("span", { class: `chip ${category}` }, `${look(category).mark} ${look(category).name}`);
    node.style.background = `var(--${category})`;
    node.style.color = `var(--on-${category})`;
    return node;
  }

  const said = (text, kind = "said") => make("bdi", { class: kind, dir: "auto" }, text);

  function thumb(source, label) {
    if (!source) return make("span", { class: "thumb" }, "no image");
    return make("img", { class: "thumb", src: source, alt: `image of ${label}` });
  }

  /** Why an answer got its category; null where no label tree tells. */
  function why(place) {
    if (place === null || place === undefined) return null;
    return make("small", { class: "why" }, said(data.reasons[place]));
  }

  const cell = (...children) => make("div", {}, ...children);

  const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const number = (x) => (x === null ? "–" : String(Math.round(x * 1000) / 1000).replace("-", "−"));

  /** -1, 0, 1 for worse, same, better; null where one of the two has no verdict. */
  function change(entry, a, b) {
    const before = entry.greedy[a], after = entry.greedy[b];
    if (!before || !after || a === b) return null;
    const from = look(before[2]).rank, to = look(after[2]).rank;
    return from === null || to === null ? null : to - from;
  }

  const words = { better: "▲ better", worse: "▼ worse", same: "= same" };
  const direction = (d) => (d === null ? null : d > 0 ? "better" : d < 0 ? "worse" : "same");

  // ---- Tables that are wider than the page -------------------------------------------------
  const widths = new ResizeObserver((boxes) => boxes.forEach((one) => {
    const box = one.target, over = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("scrolls", over);
    box.parentNode.querySelector(".hint").hidden = !over;
  }));
  for (const box of document.querySelectorAll(".wide .scroll")) widths.observe(box);

  function table(label, heads, rows) {
    const head = make("tr", {}, ...heads.map((h) => make("th", { scope: "col" }, h)));
    const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
    const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
    const box = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, whole);
    widths.observe(box);
    return make("div", { class: "wide" }, document.querySelector(".hint").cloneNode(true), box);
  }

  // ---- The address -------------------------------------------------------------------------
  // What is chosen stands behind the "?" of the fragment: #images?from=wrong&text=owl. Back and
  // forward go from choice to choice; a fragment without "?" changes nothing that is chosen.
  const FIELDS = {
    a: "run-a", b: "run-b", change: "f-change", from: "f-from", to: "f-to", class: "f-class",
    level: "f-level", domain: "f-group", set: "f-data", order: "f-sort", text: "f-text",
  };
  const isRun = (name) => name === "a" || name === "b";
  let typing = false, goToStep = () => {};

  function usual(node) {
    if (node.tagName === "INPUT") return "";
    return [...node.options].find((option) => option.defaultSelected)?.value ?? node.options[0].value;
  }

  /** Puts what is chosen into the address: as a new entry of the history, or in place of the last. */
  function remember(section, { replace = false } = {}) {
    const chosen = new URLSearchParams();
    for (const [name, id] of Object.entries(FIELDS)) {
      const node = $(id);
      if (node && node.value !== usual(node)) chosen.set(name, isRun(name) ? data.runs[node.value] : node.value);
    }
    if (state.page) chosen.set("page", state.page + 1);
    const entry = $("image").open ? state.shown[state.open] : null;
    if (entry) chosen.set("image", `${entry.id} ${entry.data}`);
    if ($("step") && $("step").selectedIndex > 0) chosen.set("step", $("step").value);
    const text = chosen.toString();
    const address = text ? `#${section}?${text}` : `#${section}`;
    history[replace ? "replaceState" : "pushState"]({ view: text }, "", address);
  }

  const inAddress = () => location.hash.includes("?")
    ? new URLSearchParams(location.hash.slice(location.hash.indexOf("?") + 1)) : null;

  /** Chooses what an address says; what it does not name, or names wrongly, is as at first. */
  function recall(chosen) {
    for (const [name, id] of Object.entries(FIELDS)) {
      const node = $(id), given = chosen.get(name);
      if (!node) continue;
      const value = given !== null && isRun(name) ? String(data.runs.indexOf(given)) : given;
      const fits = value !== null && (node.tagName === "INPUT" || [...node.options].some((o) => o.value === value));
      node.value = fits ? value : usual(node);
    }
    if (!data.images.length) return;
    refresh((Number(chosen.get("page")) || 1) - 1);
    const place = state.shown.findIndex((entry) => `${entry.id} ${entry.data}` === chosen.get("image"));
    if (place >= 0) open(place);
    else if ($("image").open) { state.open = -1; $("image").close(); }
  }

  // ---- The browser of images --------------------------------------------------------------
  const state = { page: 0, shown: [], at: 0, open: -1 };

  function filters() {
    return {
      a: Number($("run-a").value), b: Number($("run-b").value),
      change: $("f-change").value, from: $("f-from").value, to: $("f-to").value,
      label: $("f-class").value, level: $("f-level") ? $("f-level").value : "",
      group: $("f-group") ? $("f-group").value : "",
      set: $("f-data") ? $("f-data").value : "", text: $("f-text").value.trim().toLowerCase(),
      sort: $("f-sort").value,
    };
  }

  function searched(entry) {
    if (!entry.text) {
      const answers = Object.values(entry.greedy).map((g) => g[1]);
      entry.text = [entry.label, entry.group || "", entry.id, ...answers].join("\n").toLowerCase();
    }
    return entry.text;
  }

  function matches(entry, f) {
    const before = entry.greedy[f.a], after = entry.greedy[f.b];
    return (!f.change || direction(change(entry, f.a, f.b)) === f.change)
      && (!f.from || (before && before[2] === f.from))
      && (!f.to || (after && after[2] === f.to))
      && (!f.label || entry.label === f.label)
      && (!f.level || entry.level === f.level)
      && (!f.group || entry.group === f.group)
      && (!f.set || entry.data === f.set)
      && (!f.text || searched(entry).includes(f.text));
  }

  function refresh(page = 0) {
    const f = filters();
    state.shown = data.images.filter((entry) => matches(entry, f));
    const by = {
      rise: (x, y) => (change(y, f.a, f.b) ?? -99) - (change(x, f.a, f.b) ?? -99),
      fall: (x, y) => (change(x, f.a, f.b) ?? 99) - (change(y, f.a, f.b) ?? 99),
      label: (x, y) => x.label.localeCompare(y.label, "en"),
    }[f.sort];
    if (by) state.shown.sort(by);
    show(page);
  }

  function show(page, focus = null) {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE));
    state.page = Math.min(Math.max(page, 0), pages - 1);
    const first = state.page * PAGE, f = filters();
    const part = state.shown.slice(first, first + PAGE);
    const items = part.map((entry, i) => make("li", {}, card(entry, first + i, f)));
    $("cards").replaceChildren(...items);
    $("empty").hidden = part.length > 0;
    const all = data.images.length === state.shown.length ? "" : ` of ${data.images.length.toLocaleString("en")}`;
    $("count").textContent = part.length
      ? `${(first + 1).toLocaleString("en")}–${(first + part.length).toLocaleString("en")} of ${count(state.shown.length, "image", "images")}${all && `, out${all}`}`
      : "No image fits these filters";
    $("page").textContent = `Page ${state.page + 1} of ${pages}`;
    $("prev").disabled = state.page === 0;
    $("next").disabled = state.page >= pages - 1;
    rove(focus === null ? 0 : Math.min(focus, part.length - 1), focus !== null);
  }

  function line(name, answer) {
    if (!answer) return make("span", { class: "line-of meta" }, `${name}: not asked`);
    return make("span", { class: "line-of" }, chip(answer[2]), said(answer[0], "clip"));
  }

  function card(entry, place, f) {
    const d = direction(change(entry, f.a, f.b));
    const about = [entry.level, data.sets.length > 1 ? entry.data : null, data.runs.length > 1 ? null : entry.group];
    const meta = about.filter(Boolean).join(" · ");
    const node = make("button", { type: "button", class: "card", tabindex: "-1", "data-place": place },
      thumb(entry.thumb, entry.label),
      make("span", { class: "line-of" }, make("strong", {}, said(entry.label)), make("span", { class: "meta" }, meta)),
      f.a === f.b ? null : line(data.runs[f.a], entry.greedy[f.a]),
      line(data.runs[f.b], entry.greedy[f.b]),
      d ? make("span", { class: `change ${d}` }, words[d]) : null);
    node.addEventListener("click", () => open(place));
    return node;
  }

  /** Shows another page on the reader's wish. */
  function turn(page, focus = null) {
    show(page, focus);
    remember("images", { replace: true });
  }

  /** Makes one card the one that the Tab key reaches. */
  function rove(i, focus) {
    const cards = [...$("cards").querySelectorAll(".card")];
    cards.forEach((node, n) => { node.tabIndex = n === i ? 0 : -1; });
    state.at = i;
    if (focus && cards[i]) cards[i].focus();
  }

  function columns() {
    const tops = [...$("cards").children].map((node) => node.offsetTop);
    const second = tops.findIndex((top) => top > tops[0]);
    return second < 0 ? Math.max(tops.length, 1) : second;
  }

  $("cards").addEventListener("keydown", (event) => {
    const size = $("cards").children.length, wide = columns();
    const to = {
      ArrowRight: state.at + 1, ArrowLeft: state.at - 1, ArrowDown: state.at + wide,
      ArrowUp: state.at - wide, Home: 0, End: size - 1,
    }[event.key];
    if (event.key === "PageDown" && !$("next").disabled) turn(state.page + 1, 0);
    else if (event.key === "PageUp" && !$("prev").disabled) turn(state.page - 1, 0);
    else if (to === undefined) return;
    else if (to >= size && !$("next").disabled) turn(state.page + 1, 0);
    else if (to < 0 && !$("prev").disabled) turn(state.page - 1, PAGE - 1);
    else rove(Math.min(Math.max(to, 0), size - 1), true);
    event.preventDefault();
  });
  $("cards").addEventListener("focusin", (event) => {
    const place = event.target.dataset && event.target.dataset.place;
    if (place !== undefined) rove(Number(place) - state.page * PAGE, false);
  });

  // ---- One image ---------------------------------------------------------------------------
  function open(place) {
    const entry = state.shown[place];
    if (!entry) return;
    state.open = place;
    const facts = [entry.group, entry.level, data.sets.length > 1 ? entry.data : null, `image ${entry.id}`];
    const parts = [make("div", { class: "top" }, thumb(entry.thumb, entry.label),
      make("div", {}, make("h3", { id: "image-title" }, said(entry.label)),
        make("p", { class: "note" }, facts.filter(Boolean).join(" · "))))];
    data.runs.forEach((name, run) => {
      const greedy = entry.greedy[run], samples = entry.samples[run];
      if (!greedy && !samples) return;
      parts.push(make("h3", {}, name));
      if (greedy) {
        parts.push(make("div", { class: "line-of" }, chip(greedy[2]), " ", said(greedy[0])));
        parts.push(why(greedy[3]));
        parts.push(make("div", { class: "response", dir: "auto" }, greedy[1]));
      }
      if (samples) {
        parts.push(make("p", { class: "note" }, `${samples.of} samples`));
        parts.push(table("Samples", ["answer", "category", "times", "reward"],
          samples.answers.map(([answer, category, reward, times, reason]) =>
            [cell(said(answer || "(nothing)"), why(reason)), chip(category), String(times), number(reward)])));
        if (samples.more) parts.push(make("p", { class: "note" }, `and ${count(samples.more, "other answer", "other answers")}`));
      }
    });
    $("image-body").replaceChildren(...parts.filter(Boolean));
    $("image-prev").disabled = place === 0;
    $("image-next").disabled = place >= state.shown.length - 1;
    if (!$("image").open) $("image").showModal();
    $("image").scrollTop = 0;
    remember("images", { replace: true });
  }

  $("image").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) { open(state.open + by); event.preventDefault(); }
  });
  $("image").addEventListener("close", () => {
    const page = Math.floor(state.open / PAGE);
    if (state.open < 0) return;
    if (page !== state.page) show(page, state.open % PAGE);
    else rove(state.open % PAGE, true);
    remember("images", { replace: true });
  });
  $("image").addEventListener("click", (event) => { if (event.target === $("image")) $("image").close(); });
  $("image-close").addEventListener("click", () => $("image").close());
  $("image-prev").addEventListener("click", () => open(state.open - 1));
  $("image-next").addEventListener("click", () => open(state.open + 1));

  if (data.images.length) {
    let waiting = 0;
    const chosen = () => { typing = false; refresh(); remember("images"); };
    for (const node of $("filters").querySelectorAll("select")) node.addEventListener("change", chosen);
    $("f-text").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { refresh(); remember("images", { replace: typing }); typing = true; }, 120);
    });
    $("prev").addEventListener("click", () => turn(state.page - 1));
    $("next").addEventListener("click", () => turn(state.page + 1));
    $("reset").addEventListener("click", () => {
      for (const id of Object.values(FIELDS)) if ($(id)) $(id).value = usual($(id));
      chosen();
    });
    refresh();
  }

  // ---- Samples of training -------------------------------------------------------------------
  if (data.rollouts.length) {
    const steps = [...new Set(data.rollouts.map((row) => row.step))];
    let at = 0;
    const group = (row) => make("div", { class: "group" }, thumb(row.thumb, row.label),
      make("div", {}, make("strong", {}, said(row.label)), row.level ? make("span", { class: "note" }, ` · ${row.level}`) : null),
      table(`Answers about ${row.label}`, ["answer", "category", "reward"], row.answers.map(([answer, whole, category, reward]) => {
        const cell = said(answer);
        cell.title = whole;
        return [cell, chip(category), number(reward)];
      })));
    const go = (to) => {
      at = Math.min(Math.max(to, 0), steps.length - 1);
      $("step").value = String(steps[at]);
      $("step-prev").disabled = at === 0;
      $("step-next").disabled = at === steps.length - 1;
      $("rollouts").replaceChildren(...data.rollouts.filter((row) => row.step === steps[at]).map(group));
    };
    const gone = (to) => { go(to); remember("samples"); };
    $("step").addEventListener("change", () => gone(steps.indexOf(Number($("step").value))));
    $("step-prev").addEventListener("click", () => gone(at - 1));
    $("step-next").addEventListener("click", () => gone(at + 1));
    go(0);
    goToStep = (step) => go(Math.max(steps.indexOf(Number(step)), 0));
  }

  // ---- What the address says at first, and when the reader goes back ----------------------------
  function follow(chosen) {
    typing = false;
    recall(chosen);
    goToStep(chosen.get("step"));
  }
  window.addEventListener("popstate", (event) => {
    const chosen = inAddress() ?? (event.state && new URLSearchParams(event.state.view));
    if (chosen) follow(chosen);
  });
  const first = inAddress();
  history.replaceState({ view: first ? first.toString() : "" }, "");
  if (first) {
    const section = $(location.hash.slice(1).split("?")[0]);
    if (section) section.scrollIntoView();
    follow(first);
  }

  // ---- Tables that sort -----------------------------------------------------------------------
  for (const head of document.querySelectorAll("table.sorts thead th")) {
    const column = [...head.parentNode.children].indexOf(head);
    head.querySelector("button").addEventListener("click", () => {
      const body = head.closest("table").tBodies[0];
      const up = head.getAttribute("aria-sort") === "descending";
      const value = (row) => { const text = row.cells[column].dataset.value ?? row.cells[column].textContent; return column ? Number(text) : text; };
      const rows = [...body.rows].sort((x, y) => {
        const a = value(x), b = value(y);
        return (up ? 1 : -1) * (typeof a === "string" ? b.localeCompare(a, "en") * -1 : a - b);
      });
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows);
    });
  }
})();
