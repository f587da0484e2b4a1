package inbound

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestClient(t *testing.T) {
	t.Parallel()
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")}
	const proxy, outside = "10.0.0.1", "192.0.2.9"
	tests := []struct {
		name, header, peer string
		lines              []string
		want               string // "": unknown; "bad": an error
	}{
		{"no header", Forwarded, proxy, nil, proxy},
		{"header of an untrusted peer", Forwarded, outside, []string{"for=192.0.2.1"}, outside},
		{"invalid header of an untrusted peer", Forwarded, outside, []string{`for="`}, outside},
		{"header off", "", proxy, []string{"for=192.0.2.1"}, proxy},

		{"address", Forwarded, proxy, []string{"for=192.0.2.1"}, "192.0.2.1"},
		{"port", Forwarded, proxy, []string{`for="192.0.2.1:4711"`}, "192.0.2.1"},
		{"hidden port", Forwarded, proxy, []string{`for="192.0.2.1:_x1"`}, "192.0.2.1"},
		{"IPv6", Forwarded, proxy, []string{`For="[2001:db8:2::17]:4711"`}, "2001:db8:2::17"},
		{"IPv4 in IPv6", Forwarded, proxy, []string{`for="[::ffff:192.0.2.1]"`}, "192.0.2.1"},
		{"further pairs", Forwarded, proxy, []string{`proto=https;for=192.0.2.1;host="a, for=192.0.2.7";by=_x`}, "192.0.2.1"},
		{"last untrusted hop", Forwarded, proxy, []string{"for=192.0.2.1, for=192.0.2.2, for=10.1.1.1", `for="[2001:db8:1::5]"`}, "192.0.2.2"},
		{"claims before it", Forwarded, proxy, []string{"for=10.0.0.7, for=192.0.2.2"}, "192.0.2.2"},
		{"proxies only", Forwarded, proxy, []string{"for=10.0.0.7, for=10.0.0.8"}, "10.0.0.7"},
		{"unknown", Forwarded, proxy, []string{"for=192.0.2.1, for=unknown"}, ""},
		{"hidden", Forwarded, proxy, []string{"for=192.0.2.1, for=_gazonk"}, ""},
		{"element without for", Forwarded, proxy, []string{"for=192.0.2.1, proto=https"}, ""},
		{"escaped", Forwarded, proxy, []string{`for="\1\9\2.0.2.1"`}, "192.0.2.1"},

		{"quotation mark of a client", Forwarded, proxy, []string{`for="192.0.2.66, for=192.0.2.1`}, "bad"},
		{"quotation marks that pair", Forwarded, proxy, []string{`for="192.0.2.66, for="[2001:db8:2::1]"`}, "bad"},
		{"repeated for", Forwarded, proxy, []string{"for=192.0.2.66;for=192.0.2.1"}, "bad"},
		{"IPv6 without brackets", Forwarded, proxy, []string{`for="2001:db8:2::17"`}, "2001:db8:2::17"},
		{"IPv6 as a token", Forwarded, proxy, []string{`for=[2001:db8:2::17]`}, "bad"},
		{"zone", Forwarded, proxy, []string{`for="[fe80::1%25lo]"`}, "bad"},
		{"name", Forwarded, proxy, []string{"for=client.acme.test"}, "bad"},
		{"empty", Forwarded, proxy, []string{""}, "bad"},
		{"empty element", Forwarded, proxy, []string{"for=192.0.2.1,"}, "bad"},
		{"equals sign missing", Forwarded, proxy, []string{"192.0.2.1"}, "bad"},
		{"control character", Forwarded, proxy, []string{"for=\"192.0.2.1\x01\""}, "bad"},
		{"too many hops", Forwarded, proxy, []string{strings.Repeat("for=10.0.0.7,", 32) + "for=10.0.0.7"}, "bad"},
		{"too long", Forwarded, proxy, []string{"for=192.0.2.1;x=" + strings.Repeat("y", 4096)}, "bad"},

		{"list", XForwardedFor, proxy, []string{"192.0.2.1, 192.0.2.2,10.1.1.1", " 2001:db8:1::5 "}, "192.0.2.2"},
		{"list with ports", XForwardedFor, proxy, []string{"192.0.2.1:80, [2001:db8:2::1]:80"}, "2001:db8:2::1"},
		{"list with a client's rubbish", XForwardedFor, proxy, []string{`"<>, for=, 192.0.2.1`}, "192.0.2.1"},
		{"list ends with rubbish", XForwardedFor, proxy, []string{`192.0.2.1, x`}, "bad"},
		{"list ends with nothing", XForwardedFor, proxy, []string{`192.0.2.1,`}, "bad"},
		{"list ends with unknown", XForwardedFor, proxy, []string{`192.0.2.1, unknown`}, ""},
		{"list with leading zeros", XForwardedFor, proxy, []string{`192.0.02.1`}, "bad"},
		{"list with a bad port", XForwardedFor, proxy, []string{`192.0.2.1:99999`}, "bad"},
		{"long list", XForwardedFor, proxy, []string{strings.Repeat("x,", 1000) + "192.0.2.1"}, "192.0.2.1"},
		{"other header", XForwardedFor, proxy, nil, proxy},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h := http.Header{"X-Real-Ip": {"192.0.2.99"}, "True-Client-Ip": {"192.0.2.99"}}
			for _, name := range []string{Forwarded, XForwardedFor} {
				if name == test.header || test.header == "" {
					h[name] = test.lines
				} else {
					h.Set(name, "for=192.0.2.98")
				}
			}
			if test.header == Forwarded {
				h.Set(XForwardedFor, "192.0.2.98")
			}
			p := Proxies{networks, test.header}
			got, err := p.Client(netip.MustParseAddr(test.peer), h)
			want, _ := netip.ParseAddr(test.want)
			if (err != nil) != (test.want == "bad") || got != want {
				t.Errorf("got %v, %v; want %q", got, err, test.want)
			}
		})
	}
}

// A client that puts anything in front of what the proxy appends never chooses the
// address that counts.
func FuzzClientCannotChooseItsAddress(f *testing.F) {
	for _, claim := range []string{"", "for=192.0.2.66", `for="192.0.2.66`, `for="`, `a="\`, "for=10.0.0.7", `x="", for=10.0.0.7;y="`, ",", ";", "unknown", "for=192.0.2.66;ext="} {
		f.Add(claim)
	}
	const client = "198.51.100.7"
	f.Fuzz(func(t *testing.T, claim string) {
		for header, appended := range map[string][]string{
			Forwarded:     {"for=" + client, `for="` + client + `:4711"`, `proto=https;for="` + client + `:4711";host="b.test"`},
			XForwardedFor: {client, client + ":4711"},
		} {
			p := Proxies{[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, header}
			for _, last := range appended {
				for _, lines := range [][]string{{claim + ", " + last}, {claim, last}} {
					got, err := p.Client(netip.MustParseAddr("10.0.0.1"), http.Header{header: lines})
					if err == nil && got.String() != client {
						t.Errorf("%s: %q: got %v, want %s or an error", header, lines, got, client)
					}
				}
			}
		}
	})
}
