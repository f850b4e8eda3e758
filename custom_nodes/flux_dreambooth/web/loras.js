// The list of "Load FLUX DreamBooth LoRAs": a row for each LoRA with a switch, its name, a strength, its trigger words,
// and images that its run generated. The widget's value is the JSON that prompts and workflows hold.
import { app } from '../../scripts/app.js'
import { addStyle, h } from './elements.js'
import { exampleImages } from './examples.js'
import { fetchLora, fetchLoras, keepTriggers, writeTriggers } from './server.js'
import { text } from './texts.js'

const ROW = 64 // pixels
const BUTTON = 64 // with the margins around it
const SHOWN = 4 // rows; more of them scroll

app.registerExtension({
  name: 'FluxDreamBooth.LoRAs',
  setup: addStyle,
  getCustomWidgets: () => ({ FLUX_DREAMBOOTH_LORAS: (node, name) => ({ widget: loraList(node, name) }) })
})

function loraList(node, name) {
  let rows = []
  const element = h('div', { class: 'fdb-loras' })
  const height = () => BUTTON + ROW * Math.min(SHOWN, Math.max(1, rows.length))
  const widget = node.addDOMWidget(name, 'flux_dreambooth_loras', element, {
    hideOnZoom: false, getMinHeight: height, getMaxHeight: height,
    getValue: () => JSON.stringify(rows),
    setValue: (value) => { rows = read(value); draw() }
  })
  const add = h('button', { class: 'fdb-button', type: 'button', onclick: (event) => pick(event, addRow) }, h('i', { class: 'pi pi-plus' }), text('loras.add'))
  const list = h('div', { class: 'fdb-lora-rows' })
  element.append(list, add)
  const change = (index, values) => {
    rows = rows.map((row, at) => at === index ? { ...row, ...values } : row)
    changed()
  }
  const remove = (index) => { rows = rows.filter((_, at) => at !== index); changed() }
  function addRow(lora) {
    const same = rows.findIndex((row) => runOf(row.lora) === runOf(lora))
    if (same >= 0) return change(same, { lora, on: true })
    rows = [...rows, { on: true, lora, strength: 1 }]
    changed()
  }
  function changed() {
    draw()
    widget.callback?.(widget.value)
    node.setSize([Math.max(node.size[0], 380), Math.max(node.size[1], node.computeSize()[1])])
    app.graph.setDirtyCanvas(true, true)
  }
  function draw() {
    list.replaceChildren(...rows.map((row, index) => drawRow(row, (values) => change(index, values), () => remove(index))))
    if (!rows.length) list.append(h('div', { class: 'fdb-small' }, text('loras.none')))
  }
  node.addNewLoraWidget = addRow // how a loader's empty place is filled
  node.setSize([Math.max(node.size[0], 380), node.size[1]])
  draw()
  return widget
}

function drawRow({ on = true, lora, strength = 1 }, change, remove) {
  const facts = h('div', { class: 'fdb-lora-facts' })
  const drawFacts = (found) => facts.replaceChildren(...loraFacts(lora, found, drawFacts))
  fetchLora(lora).then(drawFacts).catch((error) => facts.replaceChildren(h('span', { class: 'fdb-warning' }, error.message)))
  return h('div', { class: `fdb-lora ${on ? '' : 'fdb-off'}` },
    h('div', { class: 'fdb-line' },
      h('input', { type: 'checkbox', checked: on, title: text('loras.on'), 'aria-label': text('loras.on'), onchange: (event) => change({ on: event.target.checked }) }),
      h('button', { class: 'fdb-lora-name', type: 'button', title: lora, onclick: (event) => pick(event, (name) => change({ lora: name })) }, lora),
      h('input', { class: 'fdb-lora-strength', type: 'number', step: 0.05, min: -100, max: 100, value: strength, title: text('loras.strength'), 'aria-label': text('loras.strength'), onchange: (event) => change({ strength: limited(event.target.value) }) }),
      h('button', { class: 'fdb-icon', type: 'button', title: text('loras.remove'), onclick: remove }, h('i', { class: 'pi pi-times' }))),
    facts)
}

const limited = (value) => Math.min(100, Math.max(-100, Number(value) || 0))

function loraFacts(lora, { concepts, edited, in_file, examples }, redraw) {
  const words = concepts.map(({ trigger }) => trigger).join(', ')
  const { dialog } = app.extensionManager
  const edit = () => attempt(async () => {
    const written = await dialog.prompt({ title: text('loras.edit'), message: text('loras.editHow', { lora }), defaultValue: words })
    if (written === null || written === undefined) return
    redraw(await keepTriggers(lora, written.split(',').map((word) => word.trim()).filter(Boolean)))
  })
  const write = () => attempt(async () => {
    if (await dialog.confirm({ title: text('loras.write'), message: text('loras.writeHow', { lora, words }) })) redraw(await writeTriggers(lora))
  })
  return [
    h('button', { class: 'fdb-lora-words', type: 'button', title: text(edited ? 'loras.edited' : 'loras.edit'), onclick: edit },
      h('i', { class: `pi ${edited ? 'pi-pencil' : 'pi-tag'}` }), words || text('loras.noWords')),
    edited && !in_file && h('button', { class: 'fdb-icon fdb-write', type: 'button', title: text('loras.write'), onclick: write }, h('i', { class: 'pi pi-save' })),
    ...exampleImages(examples)
  ].filter(Boolean)
}

async function attempt(act) {
  try {
    await act()
  } catch (error) {
    app.extensionManager.toast.add({ severity: 'error', summary: text('training.failed'), detail: error.message, life: 10000 })
  }
}

/** A menu of all LoRAs as they are now, with a submenu for each folder. */
async function pick(event, use) {
  const { clientX, clientY } = event
  const { loras } = await fetchLoras()
  const at = new MouseEvent('click', { clientX, clientY })
  LGraphCanvas.active_canvas ??= app.canvas // set by the first click on it, and the filter of long menus needs it
  new LiteGraph.ContextMenu(loras.length ? menuOf(loras, use) : [{ content: text('loras.noFile'), disabled: true }], { event: at, className: 'dark', scale: 1 })
}

function menuOf(names, use, before = '') {
  const folders = new Map()
  const files = []
  for (const name of names) {
    const [first, ...rest] = name.slice(before.length).split(/[\\/]/)
    if (!rest.length) files.push({ content: named(first, name), callback: () => use(name) })
    else folders.set(first, [...folders.get(first) ?? [], name])
  }
  return [
    ...[...folders].map(([folder, inside]) => ({
      content: plain(folder), has_submenu: true, submenu: { options: menuOf(inside, use, `${before}${folder}/`) }
    })),
    ...files
  ]
}

/** Menus take markup, where there is some; names of folders and files are none. */
const plain = (name) => h('span', {}, name).outerHTML
const named = (short, lora) => h('span', { 'data-lora': lora }, short).outerHTML

function read(value) {
  try {
    const found = JSON.parse(value || '[]')
    return Array.isArray(found) ? found.filter((row) => typeof row?.lora === 'string') : []
  } catch {
    return []
  }
}

const runOf = (name) => String(name).replaceAll('\\', '/').replace(/(-\d{6}|-step\d{8})?\.\w+$/, '')
