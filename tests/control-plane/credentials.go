package main

import "path/filepath"

// serviceRange is where ClusterIPs come from; serviceAddress, its first one, is the API server's.
const (
	serviceRange   = "10.96.0.0/16"
	serviceAddress = "10.96.0.1"
)

// credentials of one control plane: authorities are made at first use and kept, everything else is signed anew at each start.
type credentials struct {
	dir       string
	pki       store
	authority *identity
}

func makeCredentials(dir, server string, names []string) (*credentials, error) {
	c := &credentials{dir: dir, pki: store(filepath.Join(dir, "pki"))}
	if err := c.pki.create(); err != nil {
		return nil, err
	}
	var err error
	if c.authority, err = c.pki.authority("ca"); err != nil {
		return nil, err
	}
	proxy, err := c.pki.authority("front-proxy-ca")
	if err != nil {
		return nil, err
	}
	// Tokens that were given out have to hold after a restart.
	if _, err := c.pki.authority("service-account"); err != nil {
		return nil, err
	}
	names = append([]string{
		"127.0.0.1", "localhost", serviceAddress,
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}, names...)
	for _, one := range []struct {
		file      string
		authority *identity
		request   request
	}{
		{"apiserver", c.authority, request{name: "kube-apiserver", serves: names}},
		{"kubelet-client", c.authority, request{name: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}}},
		{"local", c.authority, request{name: "localhost", serves: []string{"127.0.0.1", "localhost"}}},
		{"front-proxy-client", proxy, request{name: "front-proxy-client"}},
	} {
		if err := c.pki.issueAndSave(one.file, one.authority, one.request); err != nil {
			return nil, err
		}
	}
	for user, who := range map[string]request{
		"admin":              {name: "kubernetes-admin", groups: []string{"system:masters"}},
		"controller-manager": {name: "system:kube-controller-manager"},
		"scheduler":          {name: "system:kube-scheduler"},
	} {
		if err := writeKubeconfig(c.kubeconfig(user), server, c.authority, who); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *credentials) kubeconfig(user string) string { return filepath.Join(c.dir, user+".kubeconfig") }
