"use strict";
(() => {
  // Each distinct thumbnail is in the page once; repetitions take it from there.
  for (const img of document.querySelectorAll("img[data-same]")) {
    img.src = document.getElementById(img.dataset.same).src;
  }

  const charts = [...document.querySelectorAll(".chart")];
  const list = document.getElementById("list");
  const articles = [...list.children];
  const order = document.getElementById("order");
  const filter = document.getElementById("filter");
  let protocol = 1; // 1-based place among the charts

  // Sorting by a number: queries where it is undefined come last.
  const byNumber = (key, sign) => (a, b) => {
    const [x, y] = [a, b].map((article) => article.getAttribute(`data-${key}-${protocol}`));
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y);
  };
  const orders = {
    given: (a, b) => a.dataset.given - b.dataset.given,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
    loss: byNumber("change", 1),
    gain: byNumber("change", -1),
    worst: byNumber("after", 1),
    best: byNumber("after", -1),
  };
  const sort = () => list.append(...[...articles].sort(orders[order.value]));

  const narrow = () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const article of articles) article.hidden = !article.dataset.name.toLowerCase().includes(wanted);
    const shown = articles.filter((article) => !article.hidden).length;
    document.getElementById("shown").value = wanted ? `${shown} of ${articles.length}` : "";
    document.getElementById("none").hidden = shown > 0 || articles.length === 0;
  };

  const choose = (name) => {
    charts.forEach((chart, place) => {
      chart.hidden = chart.dataset.protocol !== name;
      if (!chart.hidden) protocol = place + 1;
    });
    if (order.value !== "given" && order.value !== "name") sort();
  };

  for (const radio of document.querySelectorAll("input[name=protocol]")) {
    radio.addEventListener("change", () => choose(radio.value));
    if (radio.checked) choose(radio.value); // a reload keeps the choice
  }
  order.addEventListener("change", sort);
  filter.addEventListener("input", narrow);
  sort();
  narrow();

  for (const chart of charts) {
    const says = chart.querySelector("output");
    for (const bar of chart.querySelectorAll("svg a")) {
      const say = () => { says.value = bar.getAttribute("aria-label"); };
      bar.addEventListener("pointerenter", say);
      bar.addEventListener("focus", say);
      bar.addEventListener("click", () => { // its query may be filtered away
        filter.value = "";
        narrow();
      });
    }
  }
})();
