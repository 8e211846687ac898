// Shows the HTML that Python makes, whenever it makes it anew; see live.py.
export default {
  render({ model, el }) {
    const show = () => (el.innerHTML = model.get("html"));
    model.on("change:html", show);
    show();
    return () => model.off("change:html", show);
  },
};
