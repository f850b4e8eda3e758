// What a node did, shown on the node itself: its `text` result. Files that it wrote are in every list at once.
import { app } from '../../scripts/app.js'
import { addStyle, h } from './elements.js'
import { refreshLists } from './graph.js'
import { message } from './texts.js'
import { isOurs } from './widgets.js'

const SHORT = 86 // pixels with the margins: four lines; more of them scroll
const LONG = 240 // of a report
const MANY = 6 // lines of a text that is one

app.registerExtension({
  name: 'FluxDreamBooth.Results',
  setup: addStyle,
  nodeCreated(node) {
    if (!isOurs(node)) return
    const executed = node.onExecuted
    node.onExecuted = function (output, ...facts) {
      const result = executed?.call(this, output, ...facts)
      const text = message((output?.text ?? []).join('\n'))
      if (text && !node.widgets?.some(({ name }) => name === 'concepts')) show(node, text) // Concept Prompt has its own
      if (output?.written?.length) refreshLists().catch((error) => console.error(error))
      return result
    }
  }
})

function show(node, text) {
  let widget = node.widgets?.find(({ name }) => name === 'result')
  if (!widget) {
    const element = h('div', { class: 'fdb-result', tabindex: 0 })
    const height = text.split('\n').length > MANY ? LONG : SHORT
    widget = node.addDOMWidget('result', 'flux_dreambooth_result', element, {
      serialize: false, hideOnZoom: false, getMinHeight: () => height, getMaxHeight: () => height, getValue: () => '', setValue: () => {}
    })
    node.setSize([Math.max(node.size[0], height === LONG ? 420 : 0), Math.max(node.size[1], node.computeSize()[1])])
  }
  widget.element.textContent = text
  app.graph.setDirtyCanvas(true, true)
}
