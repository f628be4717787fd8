// The page of `rsfuse view`: OpenLayers draws, this file asks the server and wires the controls.
'use strict';
(async () => {
  const find = (id) => document.getElementById(id);
  const scene = await (await fetch('scene')).json();
  const grid = scene.lattice;
  const phone = matchMedia('(max-width: 640px)').matches;

  document.title = `${scene.title} · rsfuse`;
  find('title').textContent = scene.title;

  // Coordinates of the page: pixels of the first raster, x to the right and y up from its upper left.
  const extent = [0, -grid.height, grid.width, 0];
  const projection = new ol.proj.Projection({
    code: 'rsfuse:pixels', units: 'm', extent, getPointResolution: (resolution) => resolution * (grid.gsd_m || 1),
  });
  const resolutions = [];
  for (let level = grid.coarsest; level >= grid.finest; level -= 1) resolutions.push(2 ** level);
  const lattice = new ol.tilegrid.TileGrid({ origin: [0, 0], resolutions, tileSize: grid.tile });

  const imageLayer = (number) => new ol.layer.Tile({
    visible: false,
    source: new ol.source.TileImage({
      projection, tileGrid: lattice, wrapX: false, interpolate: scene.rasters[number].kind === 'picture',
      tileUrlFunction: ([z, x, y]) => `tile/${number}/${grid.coarsest - z}/${x}/${y}`,
    }),
  });
  const images = scene.rasters.map((raster, number) => (raster.usable ? imageLayer(number) : null));

  // -- objects and points -------------------------------------------------------------------------
  const classColours = Object.fromEntries(scene.classes.map(([name, colour]) => [name, colour]));
  const ramp = (p) => {
    const stops = [[215, 48, 39], [254, 224, 144], [26, 152, 80]];
    const at = Math.min(Math.max(p, 0), 1) * 2;
    const low = Math.min(Math.floor(at), 1);
    return `rgb(${stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (at - low))).join(' ')})`;
  };
  const vectors = scene.vectors.map((told, number) => {
    const state = { told, least: 0, hidden: new Set(), shown: 0, total: told.count };
    const source = new ol.source.Vector({
      strategy: (seen, resolution) => [[...seen, resolution]],
      loader: async (seen, resolution, _, success, failure) => {
        const [x0, y0, x1, y1] = seen;
        const query = new URLSearchParams({ x0, x1, y0: -y1, y1: -y0, least: state.least });
        try {
          const answer = await (await fetch(`features/${number}?${query}`)).json();
          const features = answer.features.map((item) => {
            const feature = new ol.Feature(new ol.format.GeoJSON().readGeometry(item.geometry));
            feature.setId(item.id);
            feature.setProperties({ item, state }, true);
            return feature;
          });
          source.clear(true);
          source.addFeatures(features);
          state.shown = features.length;
          state.total = answer.total;
          state.report();
          success(features);
        } catch (error) {
          source.removeLoadedExtent(seen);
          failure();
        }
      },
    });
    const style = (feature) => {
      const { item } = feature.getProperties();
      if (state.hidden.has(item.class)) return null;
      const colour = classColours[item.class] || (item.score === null ? '#ffd23f' : ramp(item.score));
      const stroke = new ol.style.Stroke({ color: colour, width: 2 });
      if (item.geometry.type !== 'Point') return new ol.style.Style({ stroke, fill: new ol.style.Fill({ color: 'rgb(0 0 0 / 1%)' }) });
      return new ol.style.Style({
        image: new ol.style.Circle({
          radius: 'kept' in item.columns && !item.columns.kept ? 2.5 : 4.5, fill: new ol.style.Fill({ color: colour }),
          stroke: new ol.style.Stroke({ color: 'rgb(0 0 0 / 65%)', width: 1 }),
        }),
      });
    };
    state.source = source;
    state.layer = new ol.layer.Vector({ source, style, updateWhileInteracting: false });
    state.report = () => {};
    return state;
  });

  const view = new ol.View({
    projection, extent: ol.extent.buffer(extent, Math.max(grid.width, grid.height)), showFullExtent: true,
    minResolution: 2 ** grid.finest / 4, maxResolution: 2 ** (grid.coarsest + 1), smoothExtentConstraint: false,
  });
  const controls = ol.control.defaults.defaults({ attribution: false, rotate: false });
  if (grid.gsd_m) controls.push(new ol.control.ScaleLine());
  const map = new ol.Map({
    target: 'map', view, controls, layers: [...images.filter(Boolean), ...vectors.map((state) => state.layer)],
  });
  view.fit(extent, { padding: phone ? [20, 20, 160, 20] : [30, 320, 30, 30], constrainResolution: false });

  // -- left, right and the swipe ------------------------------------------------------------------
  const left = find('left');
  const right = find('right');
  const swipe = find('swipe');
  let share = phone ? 0.5 : 0.4;
  scene.rasters.forEach((raster, number) => {
    if (!raster.usable) return;
    for (const select of [left, right]) select.add(new Option(raster.title, number));
  });
  left.value = String(scene.sides[0]);
  right.value = String(scene.rasters[scene.sides[1]].usable ? scene.sides[1] : scene.sides[0]);
  if (left.options.length < 2) {
    document.querySelectorAll('.two').forEach((row) => { row.hidden = true; });
    find('first').textContent = 'image';
  }
  const isSwiping = () => find('swiping').checked && left.value !== right.value;

  const arrange = () => {
    images.forEach((layer, number) => {
      if (!layer) return;
      const isRight = String(number) === right.value && left.value !== right.value;
      layer.setVisible(String(number) === left.value || isRight);
      layer.setZIndex(isRight ? 1 : 0);
      layer.setOpacity(isRight ? find('opacity').value / 100 : 1);
    });
    vectors.forEach((state) => state.layer.setZIndex(2));
    swipe.hidden = !isSwiping();
    swipe.style.left = `${share * 100}%`;
    const shown = [left.value, right.value].map((number) => scene.rasters[number].kind);
    find('scale').hidden = !shown.includes('confidence');
    map.render();
  };
  images.forEach((layer, number) => {
    if (!layer) return;
    const clips = () => String(number) === right.value && isSwiping();
    layer.on('prerender', (event) => {
      if (!clips()) return;
      const context = event.context;
      const [w, h] = map.getSize();
      const from = ol.render.getRenderPixel(event, [w * share, 0]);
      const to = ol.render.getRenderPixel(event, [w, h]);
      context.save();
      context.beginPath();
      context.rect(from[0], from[1], to[0] - from[0], to[1] - from[1]);
      context.clip();
    });
    layer.on('postrender', (event) => { if (clips()) event.context.restore(); });
  });
  swipe.addEventListener('pointerdown', (event) => swipe.setPointerCapture(event.pointerId));
  swipe.addEventListener('pointermove', (event) => {
    if (!swipe.hasPointerCapture(event.pointerId)) return;
    share = Math.min(Math.max(event.clientX / innerWidth, 0), 1);
    arrange();
  });
  for (const id of ['left', 'right', 'opacity', 'swiping']) find(id).addEventListener('input', arrange);

  // -- the panel ----------------------------------------------------------------------------------
  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  scene.facts.forEach(([label, value]) => find('facts').append(element('dt', { textContent: label }), element('dd', { textContent: value })));
  scene.notes.forEach((note) => find('notes').append(element('li', { textContent: note })));
  const swatch = (colour) => {
    const made = element('i', { className: 'swatch' });
    made.style.background = colour;
    return made;
  };
  scene.classes.forEach(([name, colour, area]) => {
    const item = element('li', {}, swatch(colour), element('span', { textContent: name }), element('span', { className: 'area', textContent: area }));
    if (vectors.some((state) => state.told.classes.includes(name))) {
      const box = element('input', { type: 'checkbox', checked: true, title: `show ${name}` });
      box.addEventListener('input', () => vectors.forEach((state) => {
        state.hidden[box.checked ? 'delete' : 'add'](name);
        state.layer.changed();
      }));
      item.prepend(box);
    }
    find('classes').querySelector('ul').append(item);
  });
  find('classes').hidden = scene.classes.length === 0;
  vectors.forEach((state, number) => {
    const count = element('span', { className: 'count' });
    const box = element('input', { type: 'checkbox', checked: true, id: `vector-${number}` });
    box.addEventListener('input', () => state.layer.setVisible(box.checked));
    const made = element('div', { className: 'vector' }, element('label', { className: 'check' }, box, element('span', { textContent: state.told.title }), count));
    if (state.told.score !== null) {
      const value = element('span');
      const slider = element('input', { type: 'range', min: 0, max: 100, id: `least-${number}` });
      const filter = () => {
        state.least = slider.value / 100;
        value.textContent = `${state.told.score} ≥ ${state.least.toFixed(2)}`;
        state.source.refresh();
      };
      slider.value = state.told.score === 'score' ? 25 : 0;
      filter();
      slider.addEventListener('input', filter);
      made.append(element('label', { className: 'row' }, value, slider));
    }
    state.report = () => {
      count.textContent = state.shown < state.total ? `${state.shown} best of ${state.total} in view` : `${state.total} in view`;
    };
    find('vectors').append(made);
  });
  find('vectors').hidden = vectors.length === 0;
  const fold = (open) => {
    find('body').hidden = !open;
    find('fold').setAttribute('aria-expanded', String(open));
    find('fold').textContent = open ? 'hide' : 'layers';
  };
  find('fold').addEventListener('click', () => fold(find('body').hidden));
  fold(!phone);

  // -- what is under the cursor, and what was clicked ---------------------------------------------
  let asked = 0;
  let waiting = null;
  const tell = (coordinate) => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      asked += 1;
      const mine = asked;
      const query = new URLSearchParams({ x: coordinate[0], y: -coordinate[1] });
      const said = await (await fetch(`place?${query}`)).json();
      if (mine !== asked) return;
      const lines = [`pixel ${said.pixel.map((v) => v.toFixed(1)).join(', ')}`];
      if (said.map) lines[0] += `   ${grid.crs} ${said.map.map((v) => v.toFixed(2)).join(', ')}`;
      if (said.degrees) lines[0] += `   ${Math.abs(said.degrees[1]).toFixed(5)}° ${said.degrees[1] < 0 ? 'S' : 'N'}, ${Math.abs(said.degrees[0]).toFixed(5)}° ${said.degrees[0] < 0 ? 'W' : 'E'}`;
      said.values.forEach((entry) => lines.push(`${entry.title}: ${entry.value}`));
      find('place').textContent = lines.join('\n');
    }, 60);
  };
  map.on('pointermove', (event) => { if (!event.dragging) tell(event.coordinate); });
  map.on('singleclick', (event) => {
    tell(event.coordinate);
    const hit = map.forEachFeatureAtPixel(event.pixel, (feature) => feature, { hitTolerance: 4 });
    const card = find('card');
    card.hidden = !hit;
    card.replaceChildren();
    if (!hit) return;
    const table = element('table');
    Object.entries(hit.get('item').columns).forEach(([name, value]) => {
      if (value === null) return;
      table.append(element('tr', {}, element('td', { textContent: name }), element('td', { textContent: String(value) })));
    });
    card.append(table);
  });

  arrange();
  map.once('rendercomplete', () => { document.body.dataset.ready = 'yes'; });
  map.render();
  window.rsfuse = { map, vectors, arrange };
})();
