"""How the page looks: paper and ink; amber is the reading with the picture (α), teal the reading of the question alone
(β); what a model reads or says is set in a typewriter's letters. No font or file comes from another server.
"""

from gradio.themes import Base
from gradio.themes.utils.fonts import Font, LocalFont

# light, dark
PAPER = ("#f6f3ea", "#11151c")
CARD = ("#fffdf7", "#191f29")
INK = ("#1b2430", "#ece7da")
SOFT = ("#565f6b", "#a9b1bd")
LINE = ("#d9d2c1", "#343d4b")
AMBER = ("#a34d06", "#f2a950")
TEAL = ("#0b6a6a", "#4ecdc4")
ON_TEAL = ("#ffffff", "#06201f")


def theme() -> Base:
    def both(**colors):
        return {key: value for name, (light, dark) in colors.items() for key, value in
                ((name, light), (f"{name}_dark", dark))}  # fmt: skip

    # the semi-bold letters that gradio brings of this font lack most signs
    sans, mono = LocalFont("IBM Plex Sans", weights=(400, 700)), LocalFont("IBM Plex Mono", weights=(400, 700))
    base = Base(font=[sans, Font("sans-serif")], font_mono=[mono, Font("monospace")], radius_size="sm")
    return base.set(
        **both(
            body_background_fill=PAPER, background_fill_primary=CARD, background_fill_secondary=PAPER,
            body_text_color=INK, body_text_color_subdued=SOFT, block_background_fill=CARD, block_border_color=LINE,
            block_label_background_fill=CARD, block_label_text_color=SOFT, block_title_text_color=SOFT,
            block_info_text_color=SOFT, border_color_primary=LINE, border_color_accent=TEAL,
            panel_background_fill=CARD,
            input_background_fill=CARD, input_border_color=LINE, input_border_color_focus=TEAL, slider_color=TEAL,
            link_text_color=TEAL, link_text_color_hover=AMBER, link_text_color_visited=TEAL,
            link_text_color_active=TEAL,
            button_primary_background_fill=TEAL, button_primary_background_fill_hover=TEAL,
            button_primary_text_color=ON_TEAL, button_primary_text_color_hover=ON_TEAL,
            button_primary_border_color=TEAL,
            button_secondary_background_fill=CARD, button_secondary_background_fill_hover=PAPER,
            button_secondary_text_color=INK, button_secondary_border_color=LINE, checkbox_background_color=CARD,
            checkbox_background_color_selected=TEAL, checkbox_border_color_selected=TEAL,
            checkbox_label_background_fill=CARD, checkbox_label_background_fill_selected=CARD,
            checkbox_label_border_color_selected=TEAL, checkbox_label_text_color_selected=INK,
            color_accent_soft=(PAPER[0], "#1f2a35"), accordion_text_color=INK, table_text_color=INK,
        ),
        color_accent=TEAL[0], button_border_width="1px", button_border_width_dark="1px", block_label_text_weight="700",
        block_title_text_weight="700", layout_gap="12px", form_gap_width="1px",
    )  # fmt: skip


def _variables(side: int) -> str:
    return f"--amber: {AMBER[side]}; --teal: {TEAL[side]}; --card: {CARD[side]}; --color-accent: {TEAL[side]};"


CSS = (
    f"""
.gradio-container {{{_variables(0)}}}
.dark .gradio-container, .gradio-container.dark {{{_variables(1)}}}
"""
    """
:root:has(body.dark) {color-scheme: dark}
.gradio-container {max-width: 1180px !important; margin: 0 auto}
.gradio-container h1 {font-size: 1.55rem; letter-spacing: -.01em; margin: .2rem 0 .4rem; display: flex;
  align-items: center; gap: .5rem}
/* two readings, and where they meet */
.gradio-container h1::before {content: ""; flex: none; width: 2.1rem; height: 1.3rem; background:
  radial-gradient(circle at .65rem 50%, color-mix(in srgb, var(--amber) 75%, transparent) .64rem, transparent .66rem),
  radial-gradient(circle at 1.45rem 50%, color-mix(in srgb, var(--teal) 75%, transparent) .64rem, transparent .66rem)}
:is(#question, #plain, #fused, #answer, #words, #message) textarea, #chat .message, .vift-runs td:last-child
  {font-family: var(--font-mono); font-size: .95rem}
#fused textarea {font-weight: 700}
#alpha {--slider-color: var(--amber)}
.dark input[type=range] {--neutral-200: var(--border-color-primary)}
:is(#now, #intro) :is(.with, .alone) {white-space: nowrap; font-weight: 700}
:is(#now, #intro) .with {color: var(--amber)} :is(#now, #intro) .alone {color: var(--teal)}
#now p, #intro p {margin: 0}
#now {font-size: .95rem}
#remark:has(p) {border: 1px solid var(--amber); border-left-width: 6px; border-radius: 4px; padding: .4rem .7rem;
  background: var(--card)}
.vift-strip {display: flex; height: 2.2rem; border-radius: 4px; overflow: hidden; margin: .4rem 0}
.vift-strip span {flex: 1; border-right: 1px solid var(--body-background-fill)}
.vift-strip .here {outline: 3px solid var(--body-text-color); outline-offset: -3px}
.vift-caption {background: #d07a26} .vift-answer {background: #158a8a}
.vift-blind {background: #8471b5} .vift-garbage {background: #8a8a8a}
.vift-scale {display: flex; justify-content: space-between; gap: 1rem; font-size: .85rem; opacity: .85}
.vift-runs, .vift-map {border-collapse: collapse; margin: .6rem 0; color: var(--body-text-color)}
.prose :is(.vift-runs, .vift-map, .vift-map tr, .vift-runs tr) {border: none}
.vift-runs {width: 100%}
.prose .vift-runs :is(td, th) {border: none; border-top: 1px solid var(--border-color-primary); padding: .25rem .5rem;
  text-align: left; vertical-align: top}
.vift-runs td:first-child {white-space: nowrap}
.vift-runs td:last-child {overflow-wrap: anywhere}
.vift-chip {display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em}
/* a bar that is always there; a shade where there is more */
.vift-scroll {overflow-x: auto; padding-bottom: .3rem; background:
  linear-gradient(to right, var(--body-background-fill) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--body-background-fill) 40%, transparent) right / 3rem 100% no-repeat local,
  radial-gradient(farthest-side at 0 50%, rgb(0 0 0 / .45), transparent) left / 1.2rem 100% no-repeat scroll,
  radial-gradient(farthest-side at 100% 50%, rgb(0 0 0 / .45), transparent) right / 1.2rem 100% no-repeat scroll}
.vift-scroll::-webkit-scrollbar {height: 12px}
.vift-scroll::-webkit-scrollbar-track {background: var(--border-color-primary); border-radius: 6px}
.vift-scroll::-webkit-scrollbar-thumb {background: var(--teal); border-radius: 6px}
.vift-hint {display: none}
@container (max-width: 44rem) {#map .vift-hint {display: block; color: var(--amber); font-weight: 700; margin: 0}}
#map {container-type: inline-size}
.prose .vift-map th {font-weight: 400; font-size: .8rem; padding: .1rem .4rem; text-align: right; white-space: nowrap;
  border: none}
.prose .vift-map th[scope=row] {position: sticky; left: 0; background: var(--body-background-fill)}
.prose .vift-map .token {writing-mode: vertical-rl; transform: rotate(180deg); text-align: right; padding: .3rem 0;
  font-family: var(--font-mono)}
.prose .vift-map td {min-width: 2.3rem; height: 1.5rem; padding: 0; font-size: .72rem; text-align: center;
  border: 1px solid var(--body-background-fill)}
.vift-note {opacity: .85; font-size: .92rem}
@media (max-width: 640px) {
  .app {padding: 6px 12px !important}
  .gradio-container h1 {font-size: 1.25rem; margin: 0 0 .2rem}
  #intro :is(p, span, b) {font-size: .9rem; line-height: 1.35}
  #now {font-size: .85rem; line-height: 1.35}
  #picture {height: 180px !important}
  :is(#question, #plain, #fused) textarea {font-size: .85rem; line-height: 1.35}
  .vift-scale, .vift-runs {font-size: .8rem}
}
"""
)
