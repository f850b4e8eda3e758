// Small helpers for elements. Texts from files and servers become text nodes, never markup.

/** h('div', {class: 'a', onclick: f}, child, 'text') */
export function h(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children)
}

export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS('http://www.w3.org/2000/svg', tag), properties, children)
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

/** A part of the page that is drawn again only when what it shows has changed. */
export function section(element, draw) {
  let shown
  return (...facts) => {
    const now = JSON.stringify(facts)
    if (now === shown) return
    shown = now
    element.replaceChildren(...[draw(...facts)].flat().filter(Boolean))
  }
}

export const addStyle = () => addStyleSheet('./style.css')

/** file: relative to this one. */
export function addStyleSheet(file) {
  const href = new URL(file, import.meta.url).href
  if (!document.querySelector(`link[href="${href}"]`)) {
    document.head.append(h('link', { rel: 'stylesheet', href }))
  }
}
