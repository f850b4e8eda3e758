// The project's workflows in the user's language: titles of groups and nodes, and notes, as far as nobody changed them.
import { app } from '../../scripts/app.js'
import { language, workflowTexts } from './texts.js'

const MARK = 'fluxDreamBoothFit' // in the "extra" of the project's workflows

app.registerExtension({
  name: 'FluxDreamBooth.WorkflowTexts',
  beforeConfigureGraph(graph) {
    if (language() === 'en' || !graph?.extra?.[MARK]) return
    const translated = workflowTexts()
    for (const each of [...graph.groups ?? [], ...graph.nodes ?? []]) each.title = translated.get(each.title) ?? each.title
    for (const { type, widgets_values: values } of graph.nodes ?? []) {
      if (type === 'MarkdownNote' && translated.has(values?.[0])) values[0] = translated.get(values[0])
    }
  }
})
