// Formulas come out of Markdown as elements of class arithmatex, with \( \) or \[ \] around their TeX.
document.querySelectorAll(".arithmatex").forEach((element) => {
  const text = element.textContent.trim();
  const options = { displayMode: text.startsWith("\\["), throwOnError: false };
  katex.render(text.slice(2, -2), element, options);
});
