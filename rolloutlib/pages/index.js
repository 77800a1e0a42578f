// Hides the cards, and the groups without a card left, that lack a word of what is searched for.

const field = document.querySelector("#search");
const said = document.querySelector("#found");
field.hidden = false;
field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  const cards = [...document.querySelectorAll(".card")];
  for (const card of cards) card.hidden = !words.every((word) => card.textContent.toLowerCase().includes(word));
  for (const group of document.querySelectorAll("section")) group.hidden = !group.querySelector(".card:not([hidden])");
  said.textContent = words.length ? `${cards.filter((card) => !card.hidden).length} found` : "";
});
