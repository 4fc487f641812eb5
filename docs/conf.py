"""The site: ``sphinx-build -n -W --keep-going docs OUTPUT``. Needs no network."""

import os
import sys
import warnings
from pathlib import Path

# scikit-learn supports the array API only if this is set before SciPy is imported.
os.environ["SCIPY_ARRAY_API"] = "1"
os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from importlib.metadata import metadata

import skdice

project = "skdice"
author = "The skdice developers"
copyright = f"2026, {author}"  # noqa: A001
version = release = skdice.__version__

extensions = [
    "command_help",
    "glossary_links",
    "mathml",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sample_report",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["changes", "gallery", "_ext", "_build"]
templates_path = ["_templates"]
# A name in single backticks, as in the docstrings, becomes a reference if the name exists.
default_role = "py:obj"

# A reference to a name of skdice that does not exist is an error. References to other projects are
# not checked, because their inventories need a network.
nitpick_ignore_regex = [("py:.*", r"(?!skdice\b).*")]
# `sphinx-build -t online` fetches the inventories of other projects and links to them.
if tags.has("online"):  # noqa: F821
    intersphinx_mapping = {
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "python": ("https://docs.python.org/3/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "sklearn": ("https://scikit-learn.org/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

autodoc_typehints = "none"
autosummary_generate = True
autosummary_ignore_module_all = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
# The contents beside a page of the reference have no room for "DICEDetector." before each method.
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
plot_formats = [("png", 120)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_rcparams = {"savefig.bbox": "tight"}
plot_apply_rcparams = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": False,
    "only_warn_on_example_error": False,
    "remove_config_comments": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": 5,
    "backreferences_dir": "auto_gallery/backreferences",
    "doc_module": ("skdice",),
    "image_srcset": ["2x"],
    # The plot of a display is shown; its repr would repeat it in words.
    "ignore_repr_types": r"matplotlib|skdice\.plotting",
}
# An example that warns is wrong, as in the tests.
warnings.filterwarnings("error", module=r"skdice(\.|$)")

html_theme = "pydata_sphinx_theme"
html_title = "skdice"
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["skdice.css"]
html_show_sourcelink = False
# The addresses of the repository, of the issues and so on, as far as pyproject.toml names them.
addresses = [entry.split(", ", 1) for entry in metadata("skdice").get_all("Project-URL") or []]
html_theme_options = {
    "external_links": [
        {"name": name, "url": url} for name, url in addresses if name != "Documentation"
    ],
    "logo": {"image_light": "_static/logo.svg", "image_dark": "_static/logo_dark.svg"},
    "show_toc_level": 2,
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages without pages below them need no navigation beside them.
html_sidebars = {
    page: []
    for page in [
        "index",
        "getting_started",
        "cli",
        "faq",
        "glossary",
        "evidence",
        "which_score",
        "performance",
        "performance_log",
        "comparison",
        "stability",
        "changelog",
        "contributing",
    ]
}
