// Lists of our nodes: options in the user's language, and names of files that can be read although they are long.
import { app } from '../../scripts/app.js'
import { inputTooltip, language, option } from './texts.js'

const PACK = decodeURIComponent(new URL('.', import.meta.url).pathname.split('/').at(-2)) // the folder it is installed in
const NAMES_ONLY = ['run', 'folder'] // lists of what users have named
const CHARACTER = 7.2 // pixels of a character in a widget
const REST = 76 // pixels of its arrows and margins
const WIDEST = 640

app.registerExtension({
  name: 'FluxDreamBooth.Widgets',
  nodeCreated(node) {
    if (!isOurs(node)) return
    for (const widget of node.widgets ?? []) {
      const values = widget.options?.values
      if (!Array.isArray(values)) continue
      if (language() !== 'en' && !NAMES_ONLY.includes(widget.name) && values.some((value) => option(value) !== value)) {
        widget.options.getOptionLabel = (value) => option(value ?? '')
      }
      if (/lora|run/.test(widget.name)) showLongNames(node, widget)
    }
  }
})

/** Whether a node is of this pack. */
export const isOurs = (node) => Boolean(node.constructor.nodeData?.python_module?.endsWith(PACK))

/** A longer name makes the node wider, as far as there is room; and the tooltip says it in full. */
function showLongNames(node, widget) {
  const { callback } = widget
  widget.callback = function (...facts) {
    const result = callback?.apply(this, facts)
    const width = Math.min(needed(widget), WIDEST, room(node))
    if (width > node.size[0]) node.setSize([width, node.size[1]])
    return result
  }
  Object.defineProperty(widget, 'tooltip', {
    configurable: true,
    set() {},
    get() {
      const tooltip = inputTooltip(node.comfyClass, widget.name)
      return needed(widget) > node.size[0] ? [widget.value, tooltip].filter(Boolean).join('\n\n') : tooltip
    }
  })
}

const needed = ({ name, label, value }) => Math.ceil(CHARACTER * (String(label ?? name).length + String(value ?? '').length) + REST)

/** How wide a node can be without covering another one. */
function room(node) {
  const [x, y] = node.pos
  const beside = (node.graph?.nodes ?? []).filter(({ id, pos, size }) =>
    id !== node.id && pos[0] >= x + node.size[0] && pos[1] - 30 < y + node.size[1] && pos[1] + size[1] > y - 30)
  return Math.min(...beside.map(({ pos }) => pos[0] - x - 20), Infinity)
}
