"""What a training image undergoes: policies draw plans, one function applies them."""
