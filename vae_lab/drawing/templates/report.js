
"use strict";
{
  const { charts, colours, styles } = JSON.parse(document.getElementById("data").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dashes = { "-": "solid", "--": "dash", "-.": "dashdot", ":": "dot" };
  const boxes = [...document.querySelectorAll(".chart")];

  const short = (name) => (name.length > 30 ? `${name.slice(0, 14)}\u2026${name.slice(-14)}` : name);

  const traces = (chart) =>
    chart.curves.map(({ name, index, values }) => ({
      name: short(name), x: chart.steps, y: values, connectgaps: true,
      mode: values.filter((v) => v != null).length < 3 ? "lines+markers" : "lines",
      line: {
        width: 2, color: css(`--c${index % colours}`),
        dash: dashes[styles[Math.floor(index / colours) % styles.length]],
      },
      hovertemplate: "%{y:.5~g}",
    }));

  const layout = (chart) => {
    const axis = { gridcolor: css("--line"), zeroline: false, automargin: true };
    return {
      height: 250, margin: { l: 8, r: 8, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: css("--soft") },
      // The whole run without its first steps; where the reader zooms in, all that is there.
      xaxis: { ...axis, title: { text: "step" }, hoverformat: ",d" },
      yaxis: { ...axis, range: [chart.low, chart.high], fixedrange: true },
      hovermode: "x unified",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") } },
      showlegend: chart.curves.length > 1,
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { color: css("--text") } },
    };
  };

  const draw = () => charts.forEach((chart, number) =>
    Plotly.react(boxes[number], traces(chart), layout(chart), {
      displayModeBar: false, responsive: true, doubleClick: "autosize",
    }));

  let zooming = false;
  const zoomTogether = (box) => box.on("plotly_relayout", (change) => {
    const ends = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (zooming || (ends[0] === undefined && !change["xaxis.autorange"])) return;
    zooming = true;
    const all = charts.map((chart, number) => Plotly.relayout(boxes[number], ends[0] === undefined
      ? { "xaxis.autorange": true, "yaxis.range": [chart.low, chart.high] }
      : { "xaxis.range": ends, "yaxis.autorange": true }));
    Promise.all(all).then(() => { zooming = false; });
  });

  const unpacked = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  // Until the curves are drawn, and where the browser is too old for it, their description is there.
  unpacked(document.getElementById("plotly").textContent).then((library) => {
    const script = document.createElement("script");
    script.textContent = library;
    document.head.append(script);
    boxes.forEach((box) => box.replaceChildren());
    draw();
    boxes.forEach(zoomTogether);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  });
}
