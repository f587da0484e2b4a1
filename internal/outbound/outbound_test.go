package outbound

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func TestPrivateAddresses(t *testing.T) {
	for address, want := range map[string]error{
		"169.254.169.254": errMetadata, "fd00:ec2::254": errMetadata, "fe80::1": errMetadata, "fe80::1%eth0": errMetadata, "::ffff:169.254.169.254": errMetadata,
		"64:ff9b::a9fe:a9fe": errMetadata, "2002:a9fe:a9fe::": errMetadata, "100.100.100.200": errMetadata, "192.0.0.192": errMetadata,
		"168.63.129.16": errMetadata, "fd20:ce::254": errMetadata, "fd00:ec2::23": errMetadata, "fd00:c1::a9fe:a9fe": errMetadata, "2002:a83f:8110::": errMetadata,
		"fec0::1": errPrivate, "::7f00:1": errPrivate, "::a9fe:a9fe": errPrivate,
		"10.1.2.3": errPrivate, "172.16.0.1": errPrivate, "192.168.1.1": errPrivate, "100.64.0.1": errPrivate, "0.0.0.0": errPrivate, "fd00::1": errPrivate,
		"::1": errPrivate, "::": errPrivate, "::ffff:10.0.0.1": errPrivate, "2002:7f00:1::": errPrivate, "224.0.0.1": errPrivate, "127.0.0.1": errPrivate,
		"1.1.1.1": nil, "2606:4700::1111": nil, "64:ff9b::101:101": nil, "172.32.0.1": nil,
	} {
		if got := check(netip.MustParseAddr(address), false); !errors.Is(got, want) {
			t.Errorf("%s: got %v, want %v", address, got, want)
		}
		if got := check(netip.MustParseAddr(address), true); (got != nil) != (want == errMetadata) {
			t.Errorf("%s with allowPrivate: got %v", address, got)
		}
	}
}

func TestClientFollowsNoRedirect(t *testing.T) {
	reached := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			reached = true
			return
		}
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	}))
	defer server.Close()
	resp, err := Client(nil, true).Get(server.URL + "/first")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusFound || reached {
		t.Errorf("got status %d, reached the target: %t", resp.StatusCode, reached)
	}
}

func TestErrorsDoNotContainTheURL(t *testing.T) {
	_, err := Client(nil, false).Get("https://127.0.0.1:1/?token=sesame")
	if err == nil || !strings.Contains(err.Error(), "sesame") {
		t.Fatalf("got %v, want an error of net/http with the URL", err)
	}
	if cause := Cause(err); !errors.Is(cause, errPrivate) || strings.Contains(cause.Error(), "sesame") {
		t.Errorf("got %v, want the cause without the URL", cause)
	}
}

func TestCheckURL(t *testing.T) {
	for _, url := range []string{"http://hooks.acme.test/x", "ftp://acme.test", "https://user:pw@acme.test", "//acme.test", "https://", "http://10.0.0.1/", "https://acme.test/#x"} {
		if CheckURL(url, true) == nil {
			t.Errorf("CheckURL accepted %s", url)
		}
	}
	for url, private := range map[string]bool{"https://acme.test/x": false, "http://127.0.0.1:8080": true, "http://[::1]/": true} {
		if err := CheckURL(url, private); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}
