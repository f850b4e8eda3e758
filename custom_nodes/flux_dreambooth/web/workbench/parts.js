// What the views of the workbench are made of.
import { app } from '../../../scripts/app.js'
import { h } from '../elements.js'
import { messageIfOurs, text } from '../texts.js'

export const icon = (name) => h('i', { class: `pi ${name}`, 'aria-hidden': 'true' })

/** A button with an icon and, unless it is `small`, its label next to it. `key` finds it again after it was drawn anew. */
export function button(name, label, onclick, { small = false, disabled = false, key = null, ...others } = {}) {
  const looks = small ? { class: 'fdb-icon fdb-shown', title: label, 'aria-label': label } : { class: 'fdb-button' }
  return h('button', { type: 'button', disabled, 'data-key': key, onclick, ...looks, ...others }, icon(name), small ? null : label)
}

/** A control with its label above it. */
export const field = (label, control, ...below) => h('label', { class: 'fdb-field' }, h('span', { class: 'fdb-small' }, label), control, ...below)

export const folded = (label, ...content) => h('details', { class: 'fdb-folded' }, h('summary', {}, label), ...content)

/** A line that screen readers read out when it changes; `say(text, kind)` with the kinds good, problem and none. */
export function statusLine() {
  const element = h('div', { class: 'fdb-status', role: 'status', 'aria-live': 'polite' })
  return {
    element,
    say(line = '', kind = '') {
      element.className = `fdb-status fdb-${kind || 'plain'}`
      const sign = { good: 'pi-check', problem: 'pi-exclamation-triangle' }[kind]
      element.replaceChildren(...[line && sign && icon(sign), line].filter(Boolean))
    }
  }
}

/** A server's refusal: its sentence, or every problem with where it is and what helps. */
export function refusal(error) {
  const problems = error.content?.problems ?? []
  return problems.length ? problemList(problems) : h('div', { class: 'fdb-problem' }, icon('pi-exclamation-triangle'), error.message)
}

/** Where a view says why it could not look or act. show(error) or show() for nothing; the same is not said twice. */
export function troublePlace() {
  const element = h('div', { role: 'alert' })
  let said = ''
  function show(error = null) {
    const now = error ? error.message : ''
    if (now === said) return
    said = now
    element.replaceChildren(...error ? [refusal(error)] : [])
  }
  return { element, show }
}

export function problemList(problems) {
  return h('ul', { class: 'fdb-problems' }, problems.map(({ where, what, hint }) => h('li', {}, icon('pi-exclamation-triangle'),
    h('span', {}, where && h('strong', {}, where, ' '), messageIfOurs(what), hint && h('span', { class: 'fdb-hint' }, messageIfOurs(hint))))))
}

/**
 * Show items as children of an element; each is drawn again only when its facts have changed, and the control that has
 * the focus keeps it. keyOf(item): what stays the same; draw(item): an element.
 */
export function keyedList(element, keyOf, draw) {
  let held = new Map()
  return (items) => {
    const focused = element.contains(document.activeElement) ? document.activeElement : null
    const row = focused?.closest('[data-row]')?.dataset.row
    const now = new Map(items.map((item) => {
      const key = String(keyOf(item))
      const facts = JSON.stringify(item)
      const former = held.get(key)
      if (former?.facts === facts) return [key, former]
      const drawn = draw(item)
      drawn.dataset.row = key
      return [key, { facts, drawn }]
    }))
    held = now
    arrange(element, [...now.values()].map((each) => each.drawn))
    if (!focused || document.activeElement === focused) return
    const same = focused.isConnected ? focused : now.get(row)?.drawn.querySelector(`[data-key="${CSS.escape(focused.dataset.key ?? '')}"]:not(:disabled)`)
    const next = same ?? now.get(row)?.drawn.querySelector('button:not(:disabled)')
    next?.focus({ preventScroll: true })
  }
}

/** Make these the children of an element; those that are there already are moved only if they have to be. */
export function arrange(element, children) {
  for (const child of [...element.children]) if (!children.includes(child)) child.remove()
  children.forEach((child, index) => {
    if (element.children[index] !== child) element.insertBefore(child, element.children[index] ?? null)
  })
}

/** Answers may overtake each other: `const mine = order.asks()`, and later only `if (order.isNewest(mine))` show it. */
export function inOrder() {
  let asked = 0
  let shown = 0
  return {
    asks: () => ++asked,
    isNewest(mine) {
      shown = Math.max(shown, mine)
      return shown === mine
    }
  }
}

/** Do it; what fails is said in a toast. Returns whether it worked. */
export async function attempt(act) {
  try {
    await act()
    return true
  } catch (error) {
    toast('error', text('training.failed'), error.message)
    return false
  }
}

export function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === 'error' ? 10000 : 5000 })
}

export const confirm = (title, message) => app.extensionManager.dialog.confirm({ title, message })

/** Keys that are typed into our fields are no shortcuts of ComfyUI's page. */
export function keepKeys(element) {
  element.addEventListener('keydown', (event) => {
    if (event.target.matches('input, textarea, select')) event.stopPropagation()
  })
}
