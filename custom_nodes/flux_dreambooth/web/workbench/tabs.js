// The tab's views under one header: a list of tabs as ARIA describes it, with the arrow keys.
import { h } from '../elements.js'
import { text } from '../texts.js'
import { icon, keepKeys } from './parts.js'

const ICONS = { images: 'pi-images', train: 'pi-play', runs: 'pi-chart-line' }

/** views: name -> {element}. Returns {element, shown(), show(name)}; onShow(name) is called for each change. */
export function createTabs(views, first, onShow) {
  const names = Object.keys(views)
  let shown = first
  const tabs = names.map((name) => h('button', {
    type: 'button', role: 'tab', id: `fdb-tab-${name}`, 'aria-controls': 'fdb-view', onclick: () => show(name)
  }, icon(ICONS[name]), h('span', {}, text(`bench.tabs.${name}`))))
  const place = h('div', { class: 'fdb-view', id: 'fdb-view', role: 'tabpanel' })
  const list = h('div', { class: 'fdb-tabs', role: 'tablist', 'aria-label': text('training.title'), onkeydown: turn }, tabs)
  const element = h('div', { class: 'fdb-panel' }, h('header', { class: 'fdb-header' }, h('span', {}, text('training.title')), list), place)
  keepKeys(element)

  function turn(event) {
    const at = names.indexOf(shown)
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: names.length - 1 }[event.key]
    if (to === undefined) return
    event.preventDefault()
    event.stopPropagation()
    const name = names.at(to % names.length)
    show(name)
    tabs[names.indexOf(name)].focus()
  }

  function draw() {
    tabs.forEach((tab, index) => {
      tab.setAttribute('aria-selected', String(names[index] === shown))
      tab.tabIndex = names[index] === shown ? 0 : -1
    })
    place.setAttribute('aria-labelledby', `fdb-tab-${shown}`)
    place.replaceChildren(views[shown].element)
  }

  function show(name) {
    shown = name
    draw()
    onShow(name)
  }
  draw()
  return { element, shown: () => shown, show }
}
