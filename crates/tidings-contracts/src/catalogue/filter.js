
// Shows the messages in which all words of the filter stand. Without it they are all shown.
const box = document.querySelector('.filter');
const field = box.querySelector('input');
const told = box.querySelector('output');
const messages = [...document.querySelectorAll('.messages > li')].map((row) => [row, row.textContent.toLowerCase()]);
const show = () => {
  const words = field.value.toLowerCase().split(/\s+/);
  for (const [row, text] of messages) row.hidden = !words.every((word) => text.includes(word));
  const shown = messages.filter(([row]) => !row.hidden).length;
  told.textContent = field.value.trim() && `${shown} of ${messages.length}`;
};
field.addEventListener('input', show);
box.hidden = false;
show();
