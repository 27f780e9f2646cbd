//go:build kubernetes_1_32

package main

import (
	"github.com/spf13/cobra"
	"k8s.io/kubernetes/cmd/kubelet/app"
)

func kubelet() *cobra.Command { return app.NewKubeletCommand() }
