package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// An identity is a certificate with its key.
type identity struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// A request says what a certificate is for.
type request struct {
	name   string
	groups []string
	// Names and addresses that it serves; none for a client.
	serves []string
}

// issue makes an identity, signed by an authority, or an authority when there is none to sign it.
func issue(authority *identity, r request) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.name, Organization: r.groups},
		// Guests' clocks may be a little behind.
		NotBefore: time.Now().Add(-24 * time.Hour),
		NotAfter:  time.Now().Add(365 * 24 * time.Hour),
		KeyUsage:  x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	signed := identity{template, key}
	if authority == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign
	} else {
		signed = *authority
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, name := range r.serves {
		if address := net.ParseIP(name); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if len(r.serves) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signed.certificate, key.Public(), signed.key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &identity{certificate, key}, err
}

func (i *identity) pem() (certificate, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.certificate.Raw})
	return certificate, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// A store is a folder of identities, NAME.crt and NAME.key.
type store string

func (s store) certificate(name string) string { return filepath.Join(string(s), name+".crt") }
func (s store) key(name string) string         { return filepath.Join(string(s), name+".key") }

// create makes the folder; keys are nobody else's business.
func (s store) create() error { return os.MkdirAll(string(s), 0o700) }

func (s store) save(name string, i *identity) error {
	certificate, key, err := i.pem()
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.certificate(name), certificate, 0o644); err != nil {
		return err
	}
	return os.WriteFile(s.key(name), key, 0o600)
}

func (s store) load(name string) (*identity, error) {
	var der [2][]byte
	for i, file := range []string{s.certificate(name), s.key(name)} {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, errors.New(file + ": no PEM block")
		}
		der[i] = block.Bytes
	}
	certificate, err := x509.ParseCertificate(der[0])
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der[1])
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New(s.key(name) + ": not a key that can sign")
	}
	return &identity{certificate, signer}, nil
}

// authority loads the authority of that name, made at first use: a control plane that is started again on its old data keeps its clients.
func (s store) authority(name string) (*identity, error) {
	if _, err := os.Stat(s.certificate(name)); err == nil {
		return s.load(name)
	}
	made, err := issue(nil, request{name: name})
	if err != nil {
		return nil, err
	}
	return made, s.save(name, made)
}

func (s store) issueAndSave(file string, authority *identity, r request) error {
	made, err := issue(authority, r)
	if err != nil {
		return err
	}
	return s.save(file, made)
}
