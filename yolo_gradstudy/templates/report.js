// SPDX-License-Identifier: AGPL-3.0-or-later
// What the page does besides being read: theme, sorting and filtering of runs, and one run's chart.
// Text reaches the page through textContent alone, so that no name can become markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  for (const node of document.querySelectorAll(".script")) node.hidden = false;

  // Theme: the system's, light or dark; kept nowhere --------------------------------------------------

  const themes = ["system", "light", "dark"];
  let theme = 0;
  $("theme").addEventListener("click", () => {
    theme = (theme + 1) % themes.length;
    if (theme) document.documentElement.dataset.theme = themes[theme];
    else delete document.documentElement.dataset.theme;
    $("theme").textContent = `Theme: ${themes[theme]}`;
    chart.redraw();
  });

  // Numbers and words ---------------------------------------------------------------------------------

  const number = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(3)));
  };
  const steps = (first, last) => (first === last ? `step ${first}` : `steps ${first} to ${last}`);
  const told = (value) => (Number.isNaN(value) ? "not recorded" : Number.isFinite(value) ? number(value) : "NaN or infinite");

  // The table of runs ---------------------------------------------------------------------------------

  const table = $("table"), body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((row, place) => ({
    row, place, id: row.id.slice("run=".length), text: row.textContent.toLowerCase(), keys: new Map(),
  }));
  const byId = new Map(rows.map((one) => [one.id, one]));
  const collator = new Intl.Collator("en", { numeric: true });

  // A cell's key: a number where it is one, null where missing. Read once: thousands of rows are sorted.
  const key = (one, column) => {
    if (!one.keys.has(column)) {
      const cell = one.row.cells[column], text = cell.dataset.v ?? cell.textContent.trim();
      const value = text === "" ? NaN : Number(text);
      one.keys.set(column, text === "–" ? null : Number.isNaN(value) ? text : value);
    }
    return one.keys.get(column);
  };

  const sort = (column) => {
    const down = heads[column].getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
    rows.sort((one, two) => {
      const a = key(one, column), b = key(two, column);
      if (a === null || b === null) return (a === null) - (b === null) || one.place - two.place;
      const both = typeof a === "number" && typeof b === "number";
      return down * (both ? a - b : collator.compare(a, b)) || one.place - two.place;
    });
    body.append(...rows.map((one) => one.row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(column));
    head.replaceChildren(button);
  });

  const filters = ["arm", "outcome", "lr0", "seed"];
  const filter = () => {
    const words = $("f-text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = filters.map((name) => [name, $(`f-${name}`).value]).filter(([, value]) => value);
    let shown = 0;
    for (const { row, text } of rows) {
      row.hidden = !(wanted.every(([name, value]) => row.dataset[name] === value) && words.every((w) => text.includes(w)));
      shown += !row.hidden;
    }
    $("count").textContent = `${shown} of ${rows.length} runs`;
  };
  $("filter").addEventListener("input", filter);
  $("filter").addEventListener("reset", () => setTimeout(filter));
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  table.classList.add("sorts");
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("a") && !String(getSelection())) location.hash = `run=${encodeURIComponent(row.id.slice(4))}`;
  });

  // Unpacking a run: the layout stands in heatmap.py ----------------------------------------------------

  const runs = new Map(data.runs.map((run) => [run.id, run]));
  const unpacked = new Map();

  const sums = (words) => words.forEach((_, i) => { if (i) words[i] += words[i - 1]; });

  const unpack = async (run) => {
    const bytes = Uint8Array.from(atob(run.data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    let at = 0;
    const take = (Kind, count) => {
      const part = new Kind(buffer.slice(at, at + count * Kind.BYTES_PER_ELEMENT));
      at += part.byteLength;
      return part;
    };
    const { b, m, p } = run;
    const starts = take(Uint32Array, b), names = take(Uint16Array, m);
    const high = take(Uint8Array, m * b), low = take(Uint8Array, m * b);
    const points = take(Uint32Array, p), lines = take(Float32Array, 3 * p);
    sums(starts);
    sums(points);
    const codes = new Uint16Array(m * b);
    for (let r = 0; r < m; r++) {
      for (let i = 0, code = 0; i < b; i++) codes[r * b + i] = code = (code + (high[r * b + i] << 8) + low[r * b + i]) & 65535;
    }
    const [loss, norm, scores] = [0, 1, 2].map((n) => lines.subarray(n * p, (n + 1) * p));
    return { run, b, m, p, starts, names, codes, points, loss, norm, scores };
  };
  const open = (id) => {
    if (!unpacked.has(id)) unpacked.set(id, unpack(runs.get(id)));
    return unpacked.get(id);
  };

  // The bin that a step is in: the last that begins at or before it.
  const binOf = (starts, step) => {
    let low = 0, high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  };
  const endOf = (starts, bin, last) => (bin + 1 < starts.length ? starts[bin + 1] - 1 : last);

  // Colours -------------------------------------------------------------------------------------------

  const stops = data.map.match(/.{6}/g).map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const colour = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), n = Math.min(Math.floor(place), stops.length - 2);
    return stops[n].map((value, i) => value + (stops[n + 1][i] - value) * (place - n));
  };
  const pixel = (rgb) => (255 << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0];
  const MAP = Uint32Array.from({ length: 256 }, (_, n) => pixel(colour(n / 255)));
  const WHITE = pixel([255, 255, 255]), GREY = pixel([189, 189, 189]), BLACK = pixel([0, 0, 0]), BROKEN = pixel([213, 94, 0]);
  {
    const ramp = $("ramp").getContext("2d"), image = ramp.createImageData(256, 1);
    new Uint32Array(image.data.buffer).set(MAP);
    ramp.putImageData(image, 0, 0);
  }

  // The chart: three lines above, layers below, one range of steps ---------------------------------------

  const chart = (() => {
    const canvas = $("chart"), context = canvas.getContext("2d");
    const base = document.createElement("canvas");
    const { zero, broken, first, missing } = data.codes;
    let shown = null, control = null, marks = [];
    let view = null, whole = null, cursor = null, drag = null, box = {};
    let heights = [], blocks = [];

    // Rows of layers: a block's height goes as the cube root of its tensors, so that small ones stay legible.
    const lay = () => {
      blocks = [];
      for (let r = 0; r < shown.m; r++) {
        const name = data.blocks[data.block[shown.names[r]]];
        if (blocks.length && blocks.at(-1).name === name) blocks.at(-1).count++;
        else blocks.push({ name, count: 1, start: r });
      }
      heights = [0];
      for (const block of blocks) {
        block.top = heights.at(-1);
        for (let n = 0; n < block.count; n++) heights.push(heights.at(-1) + block.count ** (-2 / 3));
        block.bottom = heights.at(-1);
      }
    };
    const rowAt = (height) => {
      let low = 0, high = shown.m - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (heights[middle] <= height) low = middle;
        else high = middle - 1;
      }
      return low;
    };

    const x = (step) => box.left + ((step - view.x0) / (view.x1 - view.x0)) * box.width;
    const y = (height) => box.top + ((height - view.y0) / (view.y1 - view.y0)) * box.height;
    const stepAt = (px) => view.x0 + ((px - box.left) / box.width) * (view.x1 - view.x0);
    const heightAt = (py) => view.y0 + ((py - box.top) / box.height) * (view.y1 - view.y0);
    const value = (code) => 10 ** (shown.run.low + (code - first) * shown.run.step);

    // Ends of the colours, as log10.
    const scale = () => {
      const choice = $("scale").value;
      if (choice === "view") {
        const found = [];
        const [top, bottom] = [rowAt(view.y0), rowAt(view.y1 - 1e-9)], [left, right] = [view.x0, view.x1 - 1e-6].map((step) => binOf(shown.starts, step));
        for (let r = top; r <= bottom; r++) {
          for (let i = left; i <= right; i++) {
            const code = shown.codes[r * shown.b + i];
            if (code >= first) found.push(code);
          }
        }
        // As heatmap.py ends those of a run: neither the least 2% nor what is 6 decades below the median counts.
        const sorted = Uint16Array.from(found).sort(), at = (share) => sorted[Math.floor(share * (sorted.length - 1))];
        const dark = Math.max(at(0.02), at(0.5) - data.darkest / shown.run.step), bright = sorted.at(-1);
        if (bright > dark) return [dark, bright].map((code) => shown.run.low + (code - first) * shown.run.step);
      }
      const from = choice === "control" && control && control.m ? control.run : shown.run;
      return [from.dark, from.bright];
    };

    // Of the rows that share a line of pixels the one that tells most: broken, then largest.
    const rank = (code) => (code === broken ? 65536 : code === missing ? -1 : code === zero ? 0 : code);
    const loudest = (top, bottom, bin) => {
      let best = rowAt(top);
      for (let r = best + 1; r < shown.m && heights[r] < bottom; r++) {
        if (rank(shown.codes[r * shown.b + bin]) > rank(shown.codes[best * shown.b + bin])) best = r;
      }
      return best;
    };

    const layers = (ratio) => {
      const wide = Math.round(box.width * ratio), tall = Math.round(box.height * ratio);
      const image = context.createImageData(wide, tall), out = new Uint32Array(image.data.buffer);
      const [dark, bright] = scale(), { low, step } = shown.run, hatch = Math.round(7 * ratio), line = 1.5 * ratio;
      const bins = Int32Array.from({ length: wide }, (_, px) => binOf(shown.starts, stepAt(box.left + (px + 0.5) / ratio)));
      const shades = new Uint32Array(wide);
      for (let py = 0; py < tall; py++) {
        const top = heightAt(box.top + py / ratio), bottom = heightAt(box.top + (py + 1) / ratio);
        for (let px = 0, seen = -1, shade = 0; px < wide; px++) {
          if (bins[px] !== seen) {
            seen = bins[px];
            const code = shown.codes[loudest(top, bottom, seen) * shown.b + seen];
            if (code === missing) shade = GREY;
            else if (code === zero) shade = WHITE;
            else if (code === broken) shade = 0;
            else shade = MAP[Math.round(255 * Math.min(Math.max((low + (code - first) * step - dark) / (bright - dark), 0), 1))];
          }
          shades[px] = shade || ((px + py) % hatch < line ? BLACK : BROKEN);
        }
        out.set(shades, py * wide);
      }
      const patch = document.createElement("canvas");
      patch.width = wide;
      patch.height = tall;
      patch.getContext("2d").putImageData(image, 0, 0);
      return patch;
    };

    // Ticks -------------------------------------------------------------------------------------------

    const ticks = (low, high, most, whole = false) => {
      const rough = (high - low) / Math.max(most, 1), power = 10 ** Math.floor(Math.log10(rough));
      const gap = [1, 2, whole ? 3 : 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough && (n >= 1 || !whole)) ?? 1;
      const found = [];
      for (let n = Math.ceil(low / gap - 1e-9); n * gap <= high + gap * 1e-9; n++) found.push(n * gap);
      return found;
    };

    const power = (exponent) => (exponent >= -2 && exponent <= 4 ? number(10 ** exponent) : `1e${exponent}`);

    // Lines -------------------------------------------------------------------------------------------

    const STRIPS = [
      { name: "loss", key: "loss", log: "wide" },
      { name: "gradient norm", key: "norm", log: "always" },
      { name: "target scores", key: "scores", log: "never" },
    ];

    // The range of what the view shows, of the run and, as far as it does not drown the run, of its control.
    const range = (strip) => {
      const found = [];
      for (const one of [shown, control]) {
        if (!one) continue;
        for (let i = Math.max(binOf(one.points, view.x0), 0); i < one.p && one.points[i] < view.x1; i++) {
          if (Number.isFinite(one[strip.key][i])) found.push(one[strip.key][i]);
        }
      }
      let low = Infinity, high = -Infinity, least = Infinity;
      for (const n of found) {
        low = Math.min(low, n);
        high = Math.max(high, n);
        if (n > 0) least = Math.min(least, n);
      }
      if (low > high) return null;
      const log = strip.log === "always" ? least < Infinity : strip.log === "wide" && low >= 0 && high / least > 100;
      if (log) {
        if (strip.key === "norm" && shown.run.clip) {
          least = Math.min(least, shown.run.clip);
          high = Math.max(high, shown.run.clip);
        }
        [low, high] = [Math.log10(least), Math.log10(Math.max(high, least))];
      } else if (strip.key === "scores") low = Math.min(low, 0);
      const room = (high - low || Math.abs(high) || 1) * 0.08;
      // Above there is room for the strip's name.
      return { log, low: strip.key === "scores" && low === 0 ? 0 : low - room, high: high + 4 * room };
    };

    const drawStrip = (ctx, strip, top, height, style) => {
      ctx.fillStyle = style.raised;
      ctx.fillRect(box.left, top, box.width, height);
      const found = range(strip);
      ctx.fillStyle = style.soft;
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      if (!found) {
        ctx.textAlign = "center";
        ctx.fillText(`${strip.name}: not recorded, or never finite`, box.left + box.width / 2, top + height / 2);
        return;
      }
      const place = (n) => top + height - (((found.log ? Math.log10(n) : n) - found.low) / (found.high - found.low)) * height;
      const marked = found.log ? ticks(found.low, found.high, 4, true) : ticks(found.low, found.high, 3.5);
      for (const tick of marked) {
        const py = place(found.log ? 10 ** tick : tick);
        ctx.fillText(found.log ? power(tick) : number(Number(tick.toPrecision(6))), box.left - 6, py);
        ctx.fillStyle = style.line;
        ctx.fillRect(box.left, Math.round(py), box.width, 1);
        ctx.fillStyle = style.soft;
      }
      ctx.save();
      ctx.beginPath();
      ctx.rect(box.left, top, box.width, height);
      ctx.clip();
      if (strip.key === "norm" && shown.run.clip) {
        ctx.strokeStyle = style.clip;
        ctx.lineWidth = 1.5;
        ctx.setLineDash([2, 3]);
        ctx.beginPath();
        ctx.moveTo(box.left, place(shown.run.clip));
        ctx.lineTo(box.left + box.width, place(shown.run.clip));
        ctx.stroke();
      }
      for (const [one, own] of [[control, false], [shown, true]]) {
        if (!one) continue;
        const series = one[strip.key];
        ctx.strokeStyle = own ? style.ink : style.control;
        ctx.lineWidth = own ? 1.6 : 1.2;
        ctx.setLineDash(own ? [] : [4, 3]);
        ctx.beginPath();
        let pen = false;
        for (let i = 0; i < one.p; i++) {
          const n = series[i], middle = x((one.points[i] + endOf(one.points, i, one.run.last) + 1) / 2);
          if (own && n === Infinity) { // what is not finite is a hatched band, as among the layers
            const from = x(one.points[i]), to = x(endOf(one.points, i, one.run.last) + 1);
            ctx.fillStyle = style.broken;
            ctx.fillRect(Math.floor(from), top, Math.max(Math.ceil(to) - Math.floor(from), 1), height); // no seams
          }
          if (!Number.isFinite(n)) { pen = false; continue; }
          const py = found.log && n <= 0 ? top + height - 1 : place(n);
          if (pen) ctx.lineTo(middle, py);
          else {
            ctx.moveTo(middle, py);
            ctx.lineTo(middle + 0.6, py);
          }
          pen = true;
        }
        ctx.stroke();
      }
      ctx.restore();
      ctx.setLineDash([]);
      ctx.textAlign = "left";
      ctx.textBaseline = "top";
      const label = strip.name + (found.log ? " (log)" : "");
      ctx.fillStyle = style.raised;
      ctx.fillRect(box.left + 3, top + 2, ctx.measureText(label).width + 6, 14);
      ctx.fillStyle = style.ink;
      ctx.fillText(label, box.left + 6, top + 3);
    };

    // All ---------------------------------------------------------------------------------------------

    const styles = (printing) => {
      const probe = document.createElement("span");
      document.body.append(probe);
      if (printing) probe.style.colorScheme = "light";
      const found = {};
      for (const name of ["paper", "raised", "ink", "soft", "line", "edge", "control", "clip", "onset"]) {
        probe.style.color = `var(--${name})`;
        found[name] = getComputedStyle(probe).color;
      }
      probe.remove();
      const tile = document.createElement("canvas");
      tile.width = tile.height = 8;
      const pen = tile.getContext("2d");
      pen.fillStyle = "#d55e00";
      pen.fillRect(0, 0, 8, 8);
      pen.strokeStyle = "#000";
      pen.beginPath();
      for (const at of [-8, 0, 8]) {
        pen.moveTo(at, 8);
        pen.lineTo(at + 8, 0);
      }
      pen.stroke();
      found.broken = context.createPattern(tile, "repeat");
      return found;
    };

    const draw = (printing = false) => {
      if (!shown) return;
      const width = printing ? 1000 : $("frame").clientWidth, ratio = printing ? 2 : Math.min(window.devicePixelRatio || 1, 2);
      if (!width) return;
      const narrow = width < 560, strip = narrow ? 62 : 78, gap = 10, layered = shown.m > 0 && shown.b > 0;
      const font = `${narrow ? 10.5 : 12}px system-ui, sans-serif`;
      box = { left: narrow ? 66 : 142, strips: 22, strip, gap, top: 22 + STRIPS.length * (strip + gap) };
      box.width = width - box.left - 8;
      box.height = layered ? (narrow ? 330 : 440) : 0;
      const height = box.top + box.height + 36;
      base.width = canvas.width = Math.round(width * ratio);
      base.height = canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
      const ctx = base.getContext("2d"), style = styles(printing);
      ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
      ctx.fillStyle = style.paper;
      ctx.fillRect(0, 0, width, height);
      ctx.font = font;
      STRIPS.forEach((one, n) => drawStrip(ctx, one, box.strips + n * (strip + gap), strip, style));
      if (layered) {
        ctx.drawImage(layers(ratio), box.left, box.top, box.width, box.height);
        ctx.textBaseline = "middle";
        let last = -Infinity;
        for (const block of blocks) {
          const top = Math.max(y(block.top), box.top), bottom = Math.min(y(block.bottom), box.top + box.height);
          if (bottom <= top) continue;
          ctx.fillStyle = "rgba(255,255,255,.65)";
          if (top > box.top) ctx.fillRect(box.left, top, box.width, 0.6);
          const middle = (top + bottom) / 2;
          if (middle - last < (narrow ? 11 : 12.5)) continue;
          last = middle;
          ctx.fillStyle = style.soft;
          ctx.textAlign = "right";
          let name = block.name.replace(/^model\.(?=\d)/, "");
          if (ctx.measureText(name).width > box.left - 9) {
            while (name && ctx.measureText(`…${name}`).width > box.left - 9) name = name.slice(1); // ends differ most
            name = `…${name}`;
          }
          ctx.fillText(name, box.left - 6, middle);
        }
      }
      const bottom = box.top + box.height;
      ctx.fillStyle = style.soft;
      ctx.textAlign = "center";
      ctx.textBaseline = "top";
      for (const tick of ticks(Math.ceil(view.x0), view.x1, box.width / 80, true)) {
        ctx.fillRect(x(tick), bottom, 1, 4);
        ctx.fillText(String(tick), Math.min(Math.max(x(tick), box.left + 6), width - 14), bottom + 6);
      }
      ctx.textAlign = "right";
      ctx.fillText("optimizer step", width - 8, bottom + 20);
      for (const mark of marks) {
        if (mark.step < view.x0 || mark.step >= view.x1) continue;
        const px = x(mark.step + 0.5);
        ctx.strokeStyle = mark.onset ? style.onset : "#d55e00";
        ctx.lineWidth = mark.onset ? 2 : 1.4;
        ctx.setLineDash(mark.onset ? [6, 3] : []);
        ctx.beginPath();
        ctx.moveTo(px, mark.onset ? 13 : 18);
        ctx.lineTo(px, bottom);
        ctx.stroke();
        ctx.setLineDash([]);
        ctx.fillStyle = ctx.strokeStyle;
        ctx.beginPath(); // a shape besides the colour: onset points down, an incident is a disc
        if (mark.onset) {
          ctx.moveTo(px - 5, 6);
          ctx.lineTo(px + 5, 6);
          ctx.lineTo(px, 15);
        } else ctx.arc(px, 16, 4, 0, 7);
        ctx.fill();
        if (mark.onset) {
          const right = px + 90 < width;
          ctx.textAlign = right ? "left" : "right";
          ctx.textBaseline = "middle";
          ctx.fillText(`onset, step ${mark.step}`, right ? px + 9 : px - 9, 9);
        }
      }
      const [dark, bright] = layered ? scale() : [0, 0];
      $("ramp-ends").textContent = `gradient norm from ${number(10 ** dark)} or less to ${number(10 ** bright)}${bright < shown.run.bright ? " or more" : ""} (log)`;
      $("legend").hidden = !layered;
      describe();
      over();
    };

    // What lies over the picture: the cursor, and the rectangle that is being dragged.
    const over = () => {
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.drawImage(base, 0, 0);
      const ratio = canvas.width / canvas.clientWidth || 1;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      if (drag && drag.zooms) {
        const [a, b] = [drag.x, drag.now.x].map((px) => Math.min(Math.max(px, box.left), box.left + box.width)).sort((p, q) => p - q);
        const [c, d] = drag.layered
          ? [drag.y, drag.now.y].map((py) => Math.min(Math.max(py, box.top), box.top + box.height)).sort((p, q) => p - q)
          : [box.strips, box.top + box.height];
        context.fillStyle = "rgba(90,160,255,.25)";
        context.strokeStyle = "#fff";
        context.fillRect(a, c, b - a, d - c);
        context.strokeRect(a, c, b - a, d - c);
      }
      if (!cursor || cursor.step < view.x0 - 1 || cursor.step > view.x1) return;
      const px = Math.min(Math.max(x(cursor.step + 0.5), box.left), box.left + box.width);
      for (const [shade, wide] of [["#000", 3], ["#fff", 1]]) {
        context.strokeStyle = shade;
        context.lineWidth = wide;
        context.beginPath();
        context.moveTo(px, box.strips);
        context.lineTo(px, box.top + box.height);
        if (cursor.row !== null && heights[cursor.row + 1] > view.y0 && heights[cursor.row] < view.y1) {
          const py = y((heights[cursor.row] + heights[cursor.row + 1]) / 2);
          context.moveTo(box.left, py);
          context.lineTo(box.left + box.width, py);
        }
        context.stroke();
      }
    };

    const describe = () => {
      const last = Math.min(Math.ceil(view.x1) - 1, shown.run.last);
      let text = `${steps(Math.max(Math.floor(view.x0), whole.x0), last)} of ${whole.x0} to ${shown.run.last}`;
      if (shown.m) {
        const top = rowAt(view.y0 + 1e-9), bottom = rowAt(view.y1 - 1e-9);
        text += `, layers ${top + 1} to ${bottom + 1} of ${shown.m}`;
      }
      $("view").textContent = text;
    };

    // Reading out ---------------------------------------------------------------------------------------

    const words = () => {
      const found = [];
      if (cursor.row !== null && shown.b) {
        const bin = binOf(shown.starts, cursor.step), code = shown.codes[cursor.row * shown.b + bin];
        const begin = shown.starts[bin], end = endOf(shown.starts, bin, shown.run.last);
        const what = code === missing ? "no gradient" : code === zero ? "exactly 0" : code === broken ? "NaN or infinite" : number(value(code));
        found.push(data.names[shown.names[cursor.row]], `${steps(begin, end)}, gradient norm ${what}${end > begin ? " (largest of these steps)" : ""}`);
      } else found.push(steps(binStart(), binEnd()));
      const point = binOf(shown.points, cursor.step);
      const scores = shown.scores[point], norm = shown.norm[point];
      found.push(`loss ${told(shown.loss[point])} · whole gradient’s norm ${told(norm)}${clipped(norm)}`);
      found.push(Number.isFinite(scores) ? `target scores ${number(scores)} a box` : "no target scores");
      for (const mark of marks) if (mark.step >= shown.points[point] && mark.step <= endOf(shown.points, point, shown.run.last)) found.push(mark.text);
      return found;
    };
    const binStart = () => shown.points[binOf(shown.points, cursor.step)];
    const binEnd = () => endOf(shown.points, binOf(shown.points, cursor.step), shown.run.last);
    const clipped = (norm) => (shown.run.clip && norm > shown.run.clip ? `, clipped to ${number(shown.run.clip)}` : "");

    const read = (aloud) => {
      $("readout").setAttribute("aria-live", aloud ? "polite" : "off"); // a pointer that passes must not be read aloud
      $("readout").textContent = cursor ? words().join(" · ") : "Point at the chart, or give it the focus and use the arrow keys.";
    };

    const point = (at) => {
      if (!shown || at.x < box.left || at.x > box.left + box.width || at.y > box.top + box.height) {
        if (cursor) {
          cursor = null;
          over();
          read(false);
        }
        $("tip").hidden = true;
        return;
      }
      const step = Math.min(Math.floor(stepAt(at.x)), shown.run.last);
      const inside = at.y >= box.top && shown.b > 0;
      cursor = { step, row: inside ? loudest(heightAt(Math.floor(at.y)), heightAt(Math.floor(at.y) + 1), binOf(shown.starts, step)) : null };
      over();
      read(false);
      const tip = $("tip");
      tip.textContent = words().join("\n").replaceAll(" · ", "\n");
      tip.hidden = false;
      const left = at.x + 18 + tip.offsetWidth > canvas.clientWidth ? at.x - tip.offsetWidth - 14 : at.x + 18;
      tip.style.left = `${Math.max(left, 0)}px`;
      tip.style.top = `${Math.max(at.y - tip.offsetHeight - 10, 0)}px`;
    };

    // Moving ------------------------------------------------------------------------------------------

    const look = (next) => {
      const wide = Math.min(Math.max(next.x1 - next.x0, Math.min(2, whole.x1 - whole.x0)), whole.x1 - whole.x0);
      const tall = Math.min(Math.max(next.y1 - next.y0, whole.y1 / 400), whole.y1);
      const x0 = Math.min(Math.max(next.x0, whole.x0), whole.x1 - wide);
      const y0 = Math.min(Math.max(next.y0, 0), whole.y1 - tall);
      view = { x0, x1: x0 + wide, y0, y1: y0 + tall };
      $("tip").hidden = true;
      draw();
    };
    const zoom = (factor, at = null, both = true) => {
      if (!shown) return;
      const cx = at ? stepAt(at.x) : cursor ? cursor.step + 0.5 : (view.x0 + view.x1) / 2;
      const on = cursor && cursor.row !== null ? (heights[cursor.row] + heights[cursor.row + 1]) / 2 : (view.y0 + view.y1) / 2;
      const cy = at ? heightAt(at.y) : on, f = both ? factor : 1;
      look({
        x0: cx + (view.x0 - cx) * factor, x1: cx + (view.x1 - cx) * factor,
        y0: cy + (view.y0 - cy) * f, y1: cy + (view.y1 - cy) * f,
      });
    };
    const all = () => shown && look({ ...whole });
    const move = (dx, dy) => {
      if (!shown) return;
      const wide = (view.x1 - view.x0) * dx, tall = (view.y1 - view.y0) * dy;
      look({ x0: view.x0 + wide, x1: view.x1 + wide, y0: view.y0 + tall, y1: view.y1 + tall });
    };

    // Keep the cursor in view, moving the view as little as that takes.
    const follow = () => {
      let { x0, x1, y0, y1 } = view;
      const shift = (a, b, low, high) => (a < low ? a - low : b > high ? b - high : 0);
      const dx = shift(cursor.step, cursor.step + 1, x0, x1);
      const dy = cursor.row === null ? 0 : shift(heights[cursor.row], heights[cursor.row + 1], y0, y1);
      if (dx || dy) look({ x0: x0 + dx, x1: x1 + dx, y0: y0 + dy, y1: y1 + dy });
      over();
      read(true);
    };

    const keys = (event) => {
      if (!shown || event.ctrlKey || event.metaKey || event.altKey) return;
      const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const arrow = arrows[event.key];
      const rows = shown.b > 0, starts = rows ? shown.starts : shown.points;
      if (arrow && event.shiftKey) move(arrow[0] / 5, arrow[1] / 5);
      else if (event.key === "+" || event.key === "=") zoom(0.6);
      else if (event.key === "-" || event.key === "_") zoom(1 / 0.6);
      else if (event.key === "0") all();
      else if (event.key === "Escape") {
        cursor = null;
        over();
        read(true);
      } else if (arrow || ["Home", "End", "PageUp", "PageDown", "i", "I"].includes(event.key)) {
        cursor ??= { step: Math.floor(view.x0), row: rows ? rowAt(view.y0) : null };
        if (rows) cursor.row ??= rowAt(view.y0);
        let bin = binOf(starts, cursor.step) + (arrow ? arrow[0] : 0);
        if (event.key === "Home") bin = 0;
        if (event.key === "End") bin = starts.length - 1;
        cursor.step = starts[Math.min(Math.max(bin, 0), starts.length - 1)];
        if (event.key === "i" || event.key === "I") cursor.step = (marks.find((mark) => mark.step > cursor.step) ?? marks[0] ?? cursor).step;
        if (rows) {
          const block = blocks.findIndex((one) => cursor.row < one.start + one.count);
          if (event.key === "PageDown") cursor.row = blocks[Math.min(block + 1, blocks.length - 1)].start;
          else if (event.key === "PageUp") cursor.row = blocks[Math.max(cursor.row > blocks[block].start ? block : block - 1, 0)].start;
          else cursor.row = Math.min(Math.max(cursor.row + (arrow ? arrow[1] : 0), 0), shown.m - 1);
        }
        $("tip").hidden = true;
        follow();
      } else return;
      event.preventDefault();
    };

    const at = (event) => {
      const rect = canvas.getBoundingClientRect();
      return { x: event.clientX - rect.left, y: event.clientY - rect.top };
    };
    canvas.addEventListener("keydown", keys);
    canvas.addEventListener("pointermove", (event) => {
      const now = at(event);
      if (!drag) return point(now);
      drag.now = now;
      if (drag.pans) {
        const dx = ((drag.x - now.x) / box.width) * (drag.view.x1 - drag.view.x0);
        const dy = box.height ? ((drag.y - now.y) / box.height) * (drag.view.y1 - drag.view.y0) : 0;
        look({ x0: drag.view.x0 + dx, x1: drag.view.x1 + dx, y0: drag.view.y0 + dy, y1: drag.view.y1 + dy });
      } else {
        drag.zooms ||= Math.hypot(now.x - drag.x, now.y - drag.y) > 6;
        $("tip").hidden = true;
        over();
      }
    });
    canvas.addEventListener("pointerleave", () => { if (!drag) point({ x: -1, y: -1 }); });
    canvas.addEventListener("pointerdown", (event) => {
      if (!shown || event.button) return;
      const start = at(event);
      point(start);
      if (event.pointerType === "touch") return; // a finger scrolls the page; the buttons zoom
      canvas.setPointerCapture(event.pointerId);
      drag = { ...start, now: start, view, layered: start.y >= box.top && box.height > 0, pans: event.shiftKey };
    });
    const drop = () => {
      const done = drag;
      drag = null;
      if (!done) return;
      if (!done.zooms) return over();
      const [x0, x1] = [stepAt(done.x), stepAt(done.now.x)].sort((a, b) => a - b);
      const [y0, y1] = done.layered ? [heightAt(done.y), heightAt(done.now.y)].sort((a, b) => a - b) : [view.y0, view.y1];
      cursor = null;
      look({ x0, x1, y0, y1 });
      read(false);
    };
    canvas.addEventListener("pointerup", drop);
    canvas.addEventListener("pointercancel", () => { drag = null; over(); });
    canvas.addEventListener("dblclick", all);
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls
      event.preventDefault();
      const place = at(event);
      zoom(Math.exp(Math.min(Math.max(event.deltaY, -200), 200) * 0.002), place, place.y >= box.top);
    }, { passive: false });
    $("zoom-in").addEventListener("click", () => zoom(0.6));
    $("zoom-out").addEventListener("click", () => zoom(1 / 0.6));
    $("zoom-all").addEventListener("click", all);
    for (const [id, dx, dy] of [["left", -0.2, 0], ["right", 0.2, 0], ["up", 0, -0.2], ["down", 0, 0.2]]) $(id).addEventListener("click", () => move(dx, dy));
    $("scale").addEventListener("change", () => draw());
    new ResizeObserver(() => draw()).observe($("frame"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
    addEventListener("beforeprint", () => {
      if (!shown) return;
      const kept = cursor;
      cursor = null;
      draw(true);
      $("printed").src = base.toDataURL();
      cursor = kept;
    });
    addEventListener("afterprint", () => draw());

    return {
      show(run, beside, marked) {
        [shown, control, marks, cursor] = [run, beside, marked, null];
        lay();
        const begin = Math.min(run.b ? run.starts[0] : Infinity, run.points[0]);
        whole = { x0: begin, x1: run.run.last + 1, y0: 0, y1: heights.at(-1) || 1 };
        view = { ...whole };
        draw();
        read(false);
      },
      clear() { shown = null; },
      redraw: () => draw(),
    };
  })();

  // Paper shows what is folded up -----------------------------------------------------------------------

  let folded = [];
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      one.open = true;
      folded.push(one);
    }
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    folded = [];
  });

  // One run -------------------------------------------------------------------------------------------

  const cell = (one, name) => one.row.cells[heads.findIndex((head) => head.textContent === name)]?.textContent.trim() ?? "–";

  const facts = (one, run) => {
    const list = $("facts");
    list.replaceChildren();
    const add = (word, text) => {
      const term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = word;
      said.textContent = text;
      list.append(term, said);
    };
    heads.forEach((head, n) => add(head.textContent, one.row.cells[n].textContent.trim()));
    for (const [n, incident] of (run?.incidents ?? []).entries()) {
      const images = incident.images.length ? `; images ${incident.images.join(", ")}` : "";
      add(`incident ${n + 1}`, `step ${incident.step ?? "unknown"}, ${incident.kind}${incident.evidence ? `: ${incident.evidence}` : ""}${images}`);
    }
  };

  let current = null;
  const show = async (id) => {
    const one = byId.get(id);
    if (!one) return false;
    current = id;
    for (const { row } of rows) row.removeAttribute("aria-current");
    one.row.setAttribute("aria-current", "true");
    const run = runs.get(id), choose = $("choose");
    if (![...choose.options].some((option) => option.value === id)) choose.append(new Option(id, id));
    choose.value = id;
    const verdict = $("verdict"), badge = one.row.querySelector(".badge");
    const lead = badge ? badge.cloneNode(true) : document.createTextNode(cell(one, "outcome"));
    verdict.replaceChildren(lead, ` ${id}: ${cell(one, "evidence")}`);
    facts(one, run);
    const note = (text) => {
      $("note").textContent = text;
      $("note").hidden = !text;
    };
    $("plot").hidden = !run;
    chart.clear();
    if (!run) {
      const few = runs.size < data.recorded ? ` The page has room for ${runs.size} of ${data.recorded} runs: of each arm and learning rate the first seed, the control’s and then unhealthy ones before others.` : "";
      note(`No numbers of this run’s steps are in this page; what it recorded lies in runs/${id}/telemetry.${few}`);
      return true;
    }
    if (!("DecompressionStream" in window)) {
      $("plot").hidden = true;
      note("This browser can’t unpack the runs’ numbers; it takes Chrome or Edge 80, Firefox 113, Safari 16.4, or a later one.");
      return true;
    }
    const beside = run.control && runs.has(run.control) ? run.control : null;
    const opened = await Promise.all([open(id), beside && open(beside)]);
    if (current !== id) return true; // another was chosen meanwhile
    const onset = Number(cell(one, "onset step"));
    const marked = run.incidents.filter((incident) => Number.isInteger(incident.step)).map((incident) => ({ step: incident.step, text: `incident: ${incident.kind}` }));
    if (Number.isFinite(onset)) marked.push({ step: onset, text: "onset: here the run left its course", onset: true });
    marked.sort((a, b) => a.step - b.step);
    note(run.m ? "" : "No layers were recorded of this run, or they were not kept; these are its lines.");
    $("control-key").hidden = !beside;
    $("control-name").textContent = beside ? `the control, ${beside}` : "";
    $("scale").parentElement.hidden = !run.m;
    $("scale").options[2].disabled = !(beside && opened[1].m);
    if ($("scale").selectedOptions[0].disabled) $("scale").value = "own";
    $("clip-key").hidden = !run.clip;
    $("onset-key").hidden = !marked.some((mark) => mark.onset);
    $("incident-key").hidden = marked.every((mark) => mark.onset);
    chart.show(opened[0], opened[1] || null, marked);
    return true;
  };

  for (const run of data.runs) $("choose").append(new Option(`${run.label}: ${byId.get(run.id)?.row.dataset.outcome ?? ""}`, run.id));
  const go = (id) => { location.hash = `run=${encodeURIComponent(id)}`; };
  $("choose").addEventListener("change", () => go($("choose").value));
  const neighbour = (by) => {
    const visible = rows.filter((one) => !one.row.hidden), at = visible.findIndex((one) => one.id === current);
    if (visible.length) go(visible[at < 0 ? 0 : (at + by + visible.length) % visible.length].id);
  };
  $("previous").addEventListener("click", () => neighbour(-1));
  $("next").addEventListener("click", () => neighbour(1));

  const follow = async () => {
    const found = /^#run=(.*)$/.exec(location.hash);
    if (!found) return false;
    let id = found[1];
    try { id = decodeURIComponent(id); } catch { /* not encoded */ }
    if (!(await show(id))) return false;
    // Within the section a reader keeps the place; from the table the section comes to the reader.
    if (!$("one").contains(document.activeElement)) {
      $("run").focus({ preventScroll: true });
      $("one").scrollIntoView();
    }
    return true;
  };
  addEventListener("hashchange", follow);
  follow().then((done) => {
    if (done || !rows.length) return;
    const unhealthy = ["nonfinite", "exploded", "collapsed", "stuck"];
    const first = data.runs.find((run) => run.m && unhealthy.includes(byId.get(run.id)?.row.dataset.outcome));
    show((first ?? data.runs.find((run) => run.m) ?? data.runs[0] ?? { id: rows[0].id }).id);
  });
})();
