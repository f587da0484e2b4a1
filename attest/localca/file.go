package localca

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// fileName is the name of a trust domain's file in its folder.
const fileName = "trust-domain.json"

// saved is the JSON form of a trust domain. It leaves out federated bundles, because
// the other domains may have changed them when the file is opened again.
type saved struct {
	TrustDomain string      `json:"trust_domain"`
	X509        []savedX509 `json:"x509"`
	JWT         []savedJWT  `json:"jwt"`
}

type savedX509 struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS #8
}

type savedJWT struct {
	ID  string `json:"kid"`
	Key []byte `json:"key"` // PKCS #8
}

// Open reads the trust domain in the folder dir, or creates it there. It rotates an
// X.509 authority that expires within 30 days.
func Open(dir, trustDomain string) (*CA, error) {
	ca, err := load(dir, trustDomain)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		ca, err = New(trustDomain)
	case err == nil && time.Until(ca.x509[len(ca.x509)-1].cert.NotAfter) < 30*24*time.Hour:
		err = ca.RotateX509()
	case err == nil:
		return ca, nil
	}
	if err != nil {
		return nil, err
	}
	return ca, ca.Save(dir)
}

func load(dir, trustDomain string) (*CA, error) {
	path := filepath.Join(dir, fileName)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the trust domain: %w", err)
	}
	var s saved
	if err := json.Unmarshal(content, &s); err != nil {
		return nil, fmt.Errorf("reading the trust domain from %s: %w", path, err)
	}
	if s.TrustDomain != trustDomain {
		return nil, fmt.Errorf("%s has the trust domain %s, not %s: use another folder", path, s.TrustDomain, trustDomain)
	}
	ca, err := s.restore()
	if err != nil {
		return nil, fmt.Errorf("reading the trust domain from %s: %w", path, err)
	}
	return ca, nil
}

func (s *saved) restore() (*CA, error) {
	ca, err := newCA(s.TrustDomain)
	if err != nil {
		return nil, err
	}
	for _, a := range s.X509 {
		cert, err := x509.ParseCertificate(a.Certificate)
		if err != nil {
			return nil, err
		}
		key, err := parseKey(a.Key)
		if err != nil {
			return nil, err
		}
		ca.x509 = append(ca.x509, x509Authority{cert, key})
	}
	for _, a := range s.JWT {
		key, err := parseKey(a.Key)
		if err != nil {
			return nil, err
		}
		ca.jwt = append(ca.jwt, jwtAuthority{a.ID, key})
	}
	if len(ca.x509) == 0 || len(ca.jwt) == 0 {
		return nil, errors.New("the file has no authority: delete it to create a new trust domain")
	}
	return ca, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key is a %T, not an EC key", key)
	}
	return ec, nil
}

// Save writes the trust domain with its keys to the folder dir, which it creates if
// necessary. Only the owner may read the file.
func (ca *CA) Save(dir string) error {
	s, err := ca.saved()
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the trust domain: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing the trust domain: %w", err)
	}
	// The rename is atomic: a crash leaves the old file or the new one.
	path := filepath.Join(dir, fileName)
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		return fmt.Errorf("writing the trust domain: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing the trust domain: %w", err)
	}
	return nil
}

func (ca *CA) saved() (saved, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	s := saved{TrustDomain: ca.domain.Name()}
	for _, a := range ca.x509 {
		key, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return saved{}, fmt.Errorf("encoding a key: %w", err)
		}
		s.X509 = append(s.X509, savedX509{a.cert.Raw, key})
	}
	for _, a := range ca.jwt {
		key, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return saved{}, fmt.Errorf("encoding a key: %w", err)
		}
		s.JWT = append(s.JWT, savedJWT{a.kid, key})
	}
	return s, nil
}
