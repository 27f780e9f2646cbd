package main

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientapi "k8s.io/client-go/tools/clientcmd/api"
)

const kubeconfigUsage = `usage: kubernetes kubeconfig --dir FOLDER --out FILE [flags]
Signs a client certificate with the authority of the control plane in FOLDER, and writes a kubeconfig that holds it.
`

// The name of the cluster and of the context in every kubeconfig.
const clusterName = "test"

// writeKubeconfig makes a client identity and writes it, with the server's address, into one file.
func writeKubeconfig(path, server string, authority *identity, client request) error {
	made, err := issue(authority, client)
	if err != nil {
		return err
	}
	certificate, key, err := made.pem()
	if err != nil {
		return err
	}
	authorityPEM, _, err := authority.pem()
	if err != nil {
		return err
	}
	config := clientapi.NewConfig()
	config.Clusters[clusterName] = &clientapi.Cluster{Server: server, CertificateAuthorityData: authorityPEM}
	config.AuthInfos[client.name] = &clientapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts[clusterName] = &clientapi.Context{Cluster: clusterName, AuthInfo: client.name}
	config.CurrentContext = clusterName
	return clientcmd.WriteToFile(*config, path)
}

// serverOf reads which server the control plane in dir was reached by when it was started last.
func serverOf(dir string) (string, error) {
	config, err := clientcmd.LoadFromFile(filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		return "", fmt.Errorf("no control plane was started in %s: %w", dir, err)
	}
	cluster, ok := config.Clusters[clusterName]
	if !ok {
		return "", fmt.Errorf("%s/admin.kubeconfig has no cluster %q", dir, clusterName)
	}
	return cluster.Server, nil
}

func kubeconfig(args []string) error {
	flags := flag.NewFlagSet("kubeconfig", flag.ExitOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), kubeconfigUsage)
		flags.PrintDefaults()
	}
	dir := flags.String("dir", "", "folder of `up`")
	user := flags.String("user", "kubernetes-admin", "user name")
	groups := flags.String("groups", "", "groups, comma-separated")
	server := flags.String("server", "", "URL of the API server; default: the one in the folder's admin.kubeconfig")
	out := flags.String("out", "", "file to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" || *out == "" || flags.NArg() > 0 {
		return errors.New(kubeconfigUsage)
	}
	if *server == "" {
		found, err := serverOf(*dir)
		if err != nil {
			return err
		}
		*server = found
	}
	authority, err := store(filepath.Join(*dir, "pki")).load("ca")
	if err != nil {
		return err
	}
	client := request{name: *user}
	if *groups != "" {
		client.groups = strings.Split(*groups, ",")
	}
	return writeKubeconfig(*out, *server, authority, client)
}
