// The type of a dashboard's JSON, from Grafana's own types. A dashboard is appended to this file, and TypeScript checks it.

import type { AnnotationQuery, Dashboard, FieldConfig, FieldConfigSource, Panel, RowPanel } from "@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

// As JSON has it: the value of an enumeration, not its name.
type Written<T> = T extends string
  ? `${T}`
  : T extends (infer Item)[]
    ? Written<Item>[]
    : T extends object
      ? { [Key in keyof T]: Written<T[Key]> }
      : T;

// Grafana fills in options that are left out.
type PanelOf<Type extends string, Options, Custom = never> = Omit<Panel, "type" | "options" | "fieldConfig"> & {
  type: Type;
  options: Partial<Options>;
  fieldConfig: Omit<FieldConfigSource, "defaults"> & { defaults: Omit<FieldConfig, "custom"> & { custom?: Custom } };
};
type KnownPanel =
  | RowPanel
  | PanelOf<"stat", stat.Options>
  | PanelOf<"table", table.Options, table.FieldConfig>
  | PanelOf<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | PanelOf<"heatmap", heatmap.Options, heatmap.FieldConfig>;
// Prometheus' own fields of an annotation.
type Annotation = AnnotationQuery & { expr?: string; step?: string; titleFormat?: string };
type Checked = Written<
  Omit<Dashboard, "panels" | "annotations"> & { panels: KnownPanel[]; annotations: { list: Annotation[] } }
>;
