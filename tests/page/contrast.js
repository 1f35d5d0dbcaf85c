// An expression for run.py: the texts of the page whose contrast is below what WCAG 2 asks for (AA:
// 4.5 to 1, 3 to 1 for large ones), with the contrast. Reads the document only.

(() => {
  const channels = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const light = (value) => (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) => 0.2126 * light(red) + 0.7152 * light(green) + 0.0722 * light(blue);
  // The page has no translucent grounds: the nearest one that is painted is what lies behind.
  function ground(element) {
    for (let at = element; at !== null; at = at.parentElement) {
      const colour = channels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  }
  const found = new Map();
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.data.trim() !== "");
    const style = getComputedStyle(element);
    if (text.length === 0 || !element.checkVisibility() || element.tagName === "NOSCRIPT") continue;
    const [a, b] = [luminance(channels(style.color)), luminance(ground(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (large ? 3 : 4.5)) found.set(`${element.tagName} .${element.className}`, `${text[0].data.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return [...found].map(([where, what]) => `${where} ${what}`);
})();
