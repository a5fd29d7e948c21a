// Chooses and sorts the samples. Where no script runs, all are there, the worst first.
"use strict";
const gallery = document.getElementById("gallery"), cards = [...gallery.children];
const [form, shown] = ["controls", "shown"].map(id => document.getElementById(id));
const byNumber = name => (a, b) => a.dataset[name] - b.dataset[name];
const orders = {
  worst: byNumber("rank"),
  best: (a, b) => byNumber("rank")(b, a),
  unsure: (a, b) => byNumber("entropy")(b, a),
  sure: byNumber("entropy"),
  split: byNumber("number"),
};
function update() {
  const { of, least, order } = form.elements, error = Number(least?.value ?? 0);
  for (const card of cards) {
    const classes = card.dataset.classes.split(" ");
    const isLacking = of.value !== "" && !classes.includes(of.value);
    card.hidden = isLacking || Number(card.dataset.error) < error;
  }
  gallery.append(...cards.sort(orders[order.value]));
  if (least) document.getElementById("bound").textContent = `${error} %`;
  shown.textContent = `${cards.filter(card => !card.hidden).length} of ${cards.length} are shown`;
}
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
update();
