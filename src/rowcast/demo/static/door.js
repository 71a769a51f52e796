// Signing in: whom one can be, and who one is.

const byId = (id) => document.getElementById(id);

/** Show the people to choose from; `enter(id)` is called with the chosen one. */
export function openDoor(people, enter) {
  const list = new Intl.ListFormat("en");
  for (const { id, name, role, symbols } of people) {
    const button = document.createElement("button");
    button.className = "person";
    button.innerHTML = '<span class="avatar" aria-hidden="true"></span><b></b><span class="sub"></span><span class="symbols"></span>';
    const texts = [name[0], name, role, `Starts with ${list.format(symbols)}`];
    texts.forEach((text, n) => (button.children[n].textContent = text));
    button.addEventListener("click", () => enter(id));
    byId("people").append(button);
  }
  byId("door").hidden = false;
}

/** Close the door behind a person, show the stage, and offer windows as the others; `opened` is called for one. */
export function showPerson(person, people, opened) {
  byId("door").hidden = true;
  byId("stage").hidden = false;
  byId("switch-user").hidden = false;
  byId("me-avatar").textContent = person.name[0];
  byId("me-name").textContent = person.name;
  byId("board-title").textContent = `${person.name}’s board`;
  byId("browser-user").textContent = person.name;
  const links = people.filter((each) => each !== person).map(({ id, name }) => {
    const link = Object.assign(document.createElement("a"), { href: `/?user=${id}`, target: "_blank", textContent: name });
    link.addEventListener("click", opened);
    return link;
  });
  byId("others").replaceChildren(...links.flatMap((link, n) => (n ? [" or ", link] : [link])));
}
