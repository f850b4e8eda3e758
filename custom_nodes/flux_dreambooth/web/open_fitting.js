// The project's workflows have no stored view: each opens centred, as large as fits next to the page's bars, so that
// the nodes' texts can be read. ComfyUI's own fitting leaves a quarter of the screen empty.
import { app } from '../../scripts/app.js'

const MARK = 'fluxDreamBoothFit' // in a workflow's "extra"
const BARS = { left: 76, top: 112, right: 24, bottom: 24 } // pixels that the page's bars may cover
const LARGEST = 1
const TITLE = 30
const opened = new Set() // once each: a user who comes back to an open workflow finds the view that was left

app.registerExtension({
  name: 'FluxDreamBooth.OpenFitting',
  afterConfigureGraph() {
    const { extra, id } = app.rootGraph ?? app.graph
    if (!extra?.[MARK] || extra.ds || opened.has(id)) return
    opened.add(id)
    requestAnimationFrame(() => requestAnimationFrame(fit)) // after the page has set its own view
  }
})

function fit() {
  const { ds, canvas } = app.canvas
  const { nodes, groups } = app.canvas.graph ?? app.graph
  const boxes = [
    ...nodes.map(({ pos, size }) => [pos[0], pos[1] - TITLE, pos[0] + size[0], pos[1] + size[1]]),
    ...groups.map(({ pos, size }) => [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]])
  ]
  const { width, height } = canvas.getBoundingClientRect()
  const [left, top] = [0, 1].map((side) => Math.min(...boxes.map((box) => box[side])))
  const [right, bottom] = [2, 3].map((side) => Math.max(...boxes.map((box) => box[side])))
  const [across, down] = [width - BARS.left - BARS.right, height - BARS.top - BARS.bottom]
  if (!boxes.length || across <= 0 || down <= 0) return
  ds.scale = Math.min(LARGEST, across / (right - left), down / (bottom - top))
  ds.offset[0] = (BARS.left + across / 2) / ds.scale - (left + right) / 2
  ds.offset[1] = (BARS.top + down / 2) / ds.scale - (top + bottom) / 2
  app.canvas.setDirty(true, true)
}
