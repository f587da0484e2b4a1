package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// TestSVIDCommand fetches SVIDs from a SPIRE agent, as a workload with two identities.
func TestSVIDCommand(t *testing.T) {
	t.Parallel() // it mostly waits
	s := startSPIRE(t, "acme.test")
	bin := copyBinary(t, brokerBinary(t), "tool")
	socket := strings.TrimPrefix(s.socket(), "unix://")
	svid := func(args ...string) (string, error) {
		cmd := exec.Command(bin, append([]string{"svid"}, args...)...)
		cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET=")
		out, err := cmd.Output()
		if exit, ok := err.(*exec.ExitError); ok {
			err = fmt.Errorf("broker svid %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
		}
		return string(out), err
	}
	if _, err := svid("jwt", "--audience", "x", "--socket", socket, "--timeout", "4s"); err == nil || !strings.Contains(err.Error(), "the agent has no identity for this process") {
		t.Errorf("without a registration: got %v", err)
	}
	s.register(t, "/tool/one", bin, "-dns", "tool.acme.test", "-hint", "internal")
	s.register(t, "/tool/two", bin, "-hint", "external")
	eventually(t, "both identities", time.Minute, func() error {
		_, err := svid("x509", "--spiffe-id", s.id("/tool/two"), "--socket", socket, "-o", "json")
		if err == nil {
			_, err = svid("x509", "--spiffe-id", s.id("/tool/one"), "--socket", socket, "-o", "json")
		}
		return err
	})
	bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(s.domain), []byte(s.bundle(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("jwt", func(t *testing.T) {
		audiences := []string{"https://one.test", "https://two.test"}
		for path, hint := range map[string]string{"/tool/one": "internal", "/tool/two": "external"} {
			args := []string{"jwt", "--audience", strings.Join(audiences, ","), "--socket", socket, "--spiffe-id", s.id(path)}
			token, err := svid(args...)
			if err != nil {
				t.Fatal(err)
			}
			got, err := jwtsvid.ParseAndValidate(strings.TrimSuffix(token, "\n"), bundle, audiences[1:])
			if err != nil || got.ID.String() != s.id(path) || !slices.Equal(got.Audience, audiences) {
				t.Errorf("%s: got %+v, %v", path, got, err)
			}
			text, err := svid(append(args, "-o", "json")...)
			var details struct {
				ID   string `json:"spiffe_id"`
				Hint string
			}
			if err != nil || json.Unmarshal([]byte(text), &details) != nil || details.ID != s.id(path) || details.Hint != hint {
				t.Errorf("%s: got %s, %v", path, text, err)
			}
		}
	})
	t.Run("x509", func(t *testing.T) {
		dir := t.TempDir()
		for range 2 { // the second replaces the files of the first
			if _, err := svid("x509", "--write", dir, "--spiffe-id", s.id("/tool/one"), "--socket", s.socket()); err != nil {
				t.Fatal(err)
			}
		}
		got, err := x509svid.Load(filepath.Join(dir, "svid.0.pem"), filepath.Join(dir, "svid.0.key"))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := x509svid.Verify(got.Certificates, bundle); err != nil || got.ID.String() != s.id("/tool/one") {
			t.Errorf("got %s, %v", got.ID, err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "bundle.0.pem"))
		if err != nil {
			t.Fatal(err)
		}
		roots, rest := x509.NewCertPool(), x509.NewCertPool()
		roots.AppendCertsFromPEM(text)
		for _, c := range got.Certificates[1:] {
			rest.AddCert(c)
		}
		if _, err := got.Certificates[0].Verify(x509.VerifyOptions{DNSName: "tool.acme.test", Roots: roots, Intermediates: rest}); err != nil {
			t.Errorf("as a web server: %v", err)
		}
		if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.0.pem"), filepath.Join(dir, "svid.0.key")); err != nil {
			t.Error(err)
		}
	})
	s.agent.stop()
	if _, err := svid("x509", "--socket", socket, "--timeout", "1s"); err == nil || !strings.Contains(err.Error(), "no Workload API at") && !strings.Contains(err.Error(), "does not respond") {
		t.Errorf("without an agent: got %v", err)
	}
}
