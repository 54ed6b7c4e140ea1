/** Templates: what is put into them becomes text or an attribute, never markup. */

import htm from 'htm'
import { h, type VNode } from 'preact'

/** `html`<p>${text}</p>`` */
export const html = htm.bind(h as never) as (strings: TemplateStringsArray, ...values: unknown[]) => VNode
