// What happened, in sentences with measured numbers. The one live region of the page.

const KEPT = 40;

/** Add a sentence; parts that are arrays are set in bold: tell(["Replica A"], " was killed."). */
export function tell(...parts) {
  const list = document.getElementById("story");
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString("en-GB");
  const text = document.createElement("span");
  for (const part of parts) {
    if (Array.isArray(part)) text.append(Object.assign(document.createElement("b"), { textContent: part[0] }));
    else text.append(part);
  }
  item.append(time, text);
  list.prepend(item);
  while (list.childElementCount > KEPT) list.lastElementChild.remove();
}
