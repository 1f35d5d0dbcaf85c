// Makes elements and changes a tree into another one in place.
//
// Text only ever becomes a text node: there is no way here to put markup into the page. Changing in
// place keeps what a person does meanwhile: selected text, focus, what was folded open.

const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const h = (name, attributes = {}, ...children) => make(document.createElement(name), attributes, children);
export const svg = (name, attributes = {}, ...children) => make(document.createElementNS(SVG, name), attributes, children);

/** A piece of the view: plain text as it is, what comes from /status with where it comes from. */
export function piece(part) {
  if (typeof part === "string") return part;
  const kind = `told${part.known ? "" : " unknown"}${part.whole ? " whole" : ""}`;
  return h("span", { class: kind, "data-from": part.from.join(" ") }, part.text);
}

/** Replaces the children of `holder` by `children`, touching only what differs. */
export function fill(holder, children) {
  const wanted = children.filter((child) => child !== null).map((child) => (typeof child === "string" ? document.createTextNode(child) : child));
  wanted.forEach((child, index) => {
    const present = holder.childNodes[index];
    if (present === undefined) holder.append(child);
    else patch(present, child);
  });
  while (holder.childNodes.length > wanted.length) holder.lastChild.remove();
}

function patch(present, wanted) {
  if (present.nodeName !== wanted.nodeName || present.nodeType !== wanted.nodeType) {
    present.replaceWith(wanted);
  } else if (present.nodeType === Node.TEXT_NODE) {
    if (present.data !== wanted.data) present.data = wanted.data;
  } else {
    for (const { name } of [...present.attributes]) {
      // Whether a part is folded open is the reader's.
      if (!wanted.hasAttribute(name) && name !== "open") present.removeAttribute(name);
    }
    for (const { name, value } of wanted.attributes) {
      if (present.getAttribute(name) !== value) present.setAttribute(name, value);
    }
    fill(present, [...wanted.childNodes]);
  }
}
