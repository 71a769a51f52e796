const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** A line over time. `values`: one a second, the newest last; `span`: how many there may be. */
export function line(svg, values, span, words) {
  const top = Math.max(1, ...values) * 1.1;
  const points = values.map((value, i) => [(100 * (span - values.length + i)) / (span - 1), 100 - (100 * value) / top]);
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", words);
  if (!points.length) return;
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
  const [first] = points[0];
  svg.replaceChildren(
    shape("path", { class: "area", d: `${path}L100 100L${first.toFixed(2)} 100Z` }),
    shape("path", { class: "line", d: path }),
  );
}

/** Bars, one for each count; each is named by its bound. */
export function bars(svg, counts, names, words) {
  const top = Math.max(1, ...counts);
  svg.setAttribute("viewBox", `0 0 ${counts.length * 10} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-label", words);
  svg.replaceChildren(
    ...counts.map((count, i) => {
      const height = count ? Math.max(2, (100 * count) / top) : 0;
      const bar = shape("rect", { class: "bar", x: i * 10 + 1, width: 8, y: 100 - height, height });
      const title = shape("title", {});
      title.textContent = `${names[i]}: ${count}`;
      bar.append(title);
      return bar;
    }),
  );
}
