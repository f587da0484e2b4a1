package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A slapd is a real OpenLDAP with TLS, in a temporary folder. Its groups are of every
// class that the broker knows, and each has the member "cn=nobody" at first.
type slapd struct {
	owner  testing.TB
	dir    string
	port   int
	server *process
}

const (
	slapdAdmin    = "cn=admin,dc=acme,dc=test"
	slapdBroker   = "cn=broker,dc=acme,dc=test"
	slapdPassword = "only-in-tests"
)

const slapdConf = `
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/nis.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload refint
pidfile %[1]s/pid
TLSCertificateFile %[1]s/cert.pem
TLSCertificateKeyFile %[1]s/key.pem
security simple_bind=128
database mdb
suffix "dc=acme,dc=test"
rootdn "` + slapdAdmin + `"
rootpw ` + slapdPassword + `
directory %[1]s/data
%[2]s
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=groups,dc=acme,dc=test" by dn.exact="` + slapdBroker + `" write by * read
access to * by * read
`

const slapdSeed = `dn: dc=acme,dc=test
objectClass: dcObject
objectClass: organization
o: Acme

dn: cn=broker,dc=acme,dc=test
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: ` + slapdPassword + `

dn: ou=people,dc=acme,dc=test
objectClass: organizationalUnit

dn: uid=triage,ou=people,dc=acme,dc=test
objectClass: inetOrgPerson
cn: Triage
sn: Triage

dn: uid=bo,ou=people,dc=acme,dc=test
objectClass: inetOrgPerson
cn: Bo
sn: Bo

dn: ou=groups,dc=acme,dc=test
objectClass: organizationalUnit

dn: cn=admins,ou=groups,dc=acme,dc=test
objectClass: groupOfNames
member: cn=nobody

dn: cn=unique,ou=groups,dc=acme,dc=test
objectClass: groupOfUniqueNames
uniqueMember: cn=nobody

dn: cn=unix,ou=groups,dc=acme,dc=test
objectClass: posixGroup
gidNumber: 1000

dn: cn=oncall,ou=groups,dc=acme,dc=test
objectClass: organizationalRole

dn: cn=bare,ou=groups,dc=acme,dc=test
objectClass: groupOfNames
member: uid=bo,ou=people,dc=acme,dc=test
`

// startSlapd starts a directory. more are further lines of its configuration.
func startSlapd(t testing.TB, more ...string) *slapd {
	t.Helper()
	s := &slapd{owner: t, port: freePort(t)}
	var err error
	if s.dir, err = os.MkdirTemp("", "slapd-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	if err := os.Mkdir(filepath.Join(s.dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.writeCertificate(t)
	s.configure(t, more...)
	s.write(t, "seed.ldif", slapdSeed)
	if out, err := exec.Command(filepath.Join(filepath.Dir(installed(t, "slapd")), "slapadd"), "-f", s.path("slapd.conf"), "-l", s.path("seed.ldif")).CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v\n%s", err, out)
	}
	s.start(t)
	return s
}

func (s *slapd) path(name string) string { return filepath.Join(s.dir, name) }

func (s *slapd) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// configure writes the configuration, which the next start reads.
func (s *slapd) configure(t testing.TB, more ...string) {
	t.Helper()
	s.write(t, "slapd.conf", fmt.Sprintf(slapdConf, s.dir, strings.Join(more, "\n")))
}

// writeCertificate writes a certificate for loopback, which is its own authority.
func (s *slapd) writeCertificate(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "slapd"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	s.write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
	s.write(t, "password", slapdPassword+"\n")
}

func (s *slapd) url() string { return fmt.Sprintf("ldaps://127.0.0.1:%d", s.port) }

// start starts the directory, or starts it again with the same data and port.
func (s *slapd) start(t testing.TB) {
	t.Helper()
	var err error
	// With a level of debugging, it stays in the foreground.
	if s.server, err = start(s.owner, "slapd", installed(t, "slapd"), "-f", s.path("slapd.conf"), "-h", s.url()+"/", "-d", "0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the start of slapd", time.Minute, func() error {
		if s.server.ended() {
			t.Fatalf("slapd did not start:\n%s", s.server.out)
		}
		_, err := s.tool("ldapsearch", "", "-LLL", "-s", "base", "-b", "dc=acme,dc=test", "1.1")
		return err
	})
}

// tool runs one of OpenLDAP's commands as the administrator.
func (s *slapd) tool(name, input string, args ...string) (string, error) {
	cmd := exec.Command(name, append([]string{"-H", s.url(), "-x", "-D", slapdAdmin, "-w", slapdPassword}, args...)...)
	cmd.Env = append(os.Environ(), "LDAPTLS_CACERT="+s.path("cert.pem"))
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), nil
}

func (s *slapd) must(t testing.TB, name, input string, args ...string) string {
	t.Helper()
	installed(t, "ldapmodify")
	out, err := s.tool(name, input, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// members returns the values of a group's attribute, sorted, without the placeholder.
func (s *slapd) members(t testing.TB, group, attribute string) (values []string) {
	t.Helper()
	out := s.must(t, "ldapsearch", "", "-LLL", "-o", "ldif-wrap=no", "-s", "base", "-b", groupDN(group), attribute)
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), attribute+": "); ok && value != "cn=nobody" {
			values = append(values, value)
		}
	}
	slices.Sort(values)
	return values
}

// change adds a value to a group's attribute or deletes it, as someone else than the
// broker would.
func (s *slapd) change(t testing.TB, op, group, attribute, value string) {
	t.Helper()
	s.must(t, "ldapmodify", fmt.Sprintf("dn: %s\nchangetype: modify\n%s: %s\n%s: %s\n", groupDN(group), op, attribute, attribute, value))
}

func groupDN(name string) string  { return "cn=" + name + ",ou=groups,dc=acme,dc=test" }
func personDN(name string) string { return "uid=" + name + ",ou=people,dc=acme,dc=test" }
