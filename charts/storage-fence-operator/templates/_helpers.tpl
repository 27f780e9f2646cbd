{{/*
Names are fixed, whatever the release is called: there is one installation a cluster (the CRDs are cluster-wide), and so the
commands in the docs hold everywhere. A second release fails at once on the objects of the first.
*/}}

{{- define "storage-fence.labels" -}}
app.kubernetes.io/name: storage-fence-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Selectors cannot change later: only what never does. */}}
{{- define "storage-fence.controllerSelector" -}}
app.kubernetes.io/name: storage-fence-operator
app.kubernetes.io/component: controller
{{- end }}

{{- define "storage-fence.agentSelector" -}}
app.kubernetes.io/name: storage-fence-operator
app.kubernetes.io/component: agent
{{- end }}

{{- define "storage-fence.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "storage-fence.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "storage-fence.downwardEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}
