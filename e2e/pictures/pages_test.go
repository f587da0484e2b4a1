package pictures

import (
	"bytes"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The pages have not changed so that "make pictures" can't take its screenshots.
func TestPages(t *testing.T) {
	dir := t.ArtifactDir()
	broker := filepath.Join(t.TempDir(), "broker")
	build := exec.Command("go", "build", "-o", broker, "./cmd/broker")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the broker: %v\n%s", err, out)
	}
	if err := Pages(t.Context(), broker, dir); err != nil {
		t.Fatal(err)
	}
	for _, s := range shots {
		picture, err := os.ReadFile(filepath.Join(dir, s.name+".png"))
		if err != nil {
			t.Fatal(err)
		}
		size, err := png.DecodeConfig(bytes.NewReader(picture))
		widest := int(float64(s.width) * sharp)
		if err != nil || size.Width > widest || size.Width < widest*9/10 || size.Height < 300 {
			t.Errorf("%s: got %d × %d pixels, %v; want a width of about %d", s.name, size.Width, size.Height, err, widest)
		}
		if len(picture) > 100<<10 {
			t.Errorf("%s: got %d bytes, want at most 100 KB", s.name, len(picture))
		}
	}
}
